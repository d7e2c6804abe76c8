//! How long a container's short life takes; printed, not judged.

use crate::Subject;
use crate::fixture::{Bundle, Container, delete};
use serde_json::json;
use std::time::{Duration, Instant};

const ROUNDS: usize = 30;

/// Print medians of create, start to exit, and exec for a handler.
pub fn measure(subject: &Subject) {
    let bundle = Bundle::new("speed");
    bundle.write(&bundle.spec(&["/bin/true"]));
    let (mut create, mut start, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut container = Container::create(subject.handler.as_ref(), &bundle).unwrap();
        create.push(begin.elapsed());
        let begin = Instant::now();
        container.start().unwrap();
        container.wait_init();
        start.push(begin.elapsed());
        let begin = Instant::now();
        delete(subject.handler.as_ref(), &bundle);
        remove.push(begin.elapsed());
    }
    let spec = bundle.spec(&["sleep", "60"]);
    bundle.write(&spec);
    let mut container = Container::create(subject.handler.as_ref(), &bundle).unwrap();
    container.start().unwrap();
    let mut process = spec["process"].clone();
    process["args"] = json!(["/bin/true"]);
    let mut exec = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        container.run(&process).unwrap();
        exec.push(begin.elapsed());
    }
    container.signal(libc::SIGKILL, false);
    container.wait_init();
    delete(subject.handler.as_ref(), &bundle);
    println!(
        "speed [{}]: create {:.1} ms, start to exit {:.1} ms, delete {:.1} ms, exec {:.1} ms (medians of {ROUNDS})",
        subject.name,
        median(create),
        median(start),
        median(remove),
        median(exec),
    );
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
