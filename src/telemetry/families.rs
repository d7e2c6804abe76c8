//! The families of figures, their labels and their buckets.

use std::{
    fmt::{Error, Write as _},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds. Answers from memory take a millisecond, pulls minutes.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// Names of gRPC's codes, by their number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

const UNIMPLEMENTED: u16 = 12;

/// The name of gRPC's `code`.
pub fn code_name(code: u16) -> &'static str {
    CODES.get(usize::from(code)).copied().unwrap_or("Unknown")
}

/// What is counted: name without the ending that its kind gives it, and help.
const COUNTED: [(&str, &str); 7] = [
    ("wharf_rpc", "gRPC calls answered, by method and code"),
    ("wharf_rpc_duration", "Time until the answer to a gRPC call began"),
    (
        "wharf_operation_duration",
        "Time of the work behind calls that make or end something",
    ),
    (
        "wharf_operation_stage_duration",
        "Time that such work spent in each of its stages",
    ),
    (
        "wharf_image_pulls",
        "Pulls that have ended, by result; one that several have asked for counts once for each",
    ),
    ("wharf_image_pull_duration", "Time of pulls that have succeeded"),
    (
        "wharf_container_exits",
        "Containers that have ended, by the reason that CRI tells",
    ),
];

/// What is looked up: name and help.
const LOOKED_UP: [(&str, &str); 14] = [
    ("wharf_build_info", "Version of the daemon"),
    ("wharf_pods", "Pods by state"),
    ("wharf_containers", "Containers by state"),
    ("wharf_images", "Images"),
    ("wharf_operations", "Operations under way, by call"),
    (
        "wharf_operation_oldest_seconds",
        "Age of the oldest operation under way, by call; growing is stalled",
    ),
    ("wharf_runtime_ready", "1 if containers can run"),
    ("wharf_network_ready", "1 if pods get a network"),
    ("process_cpu_seconds_total", "CPU time of the daemon"),
    ("process_resident_memory_bytes", "Memory of the daemon"),
    ("process_open_fds", "File descriptors of the daemon"),
    ("process_max_fds", "Most file descriptors that the daemon may have"),
    ("process_threads", "Threads of the daemon"),
    ("process_start_time_seconds", "When the daemon was started, Unix time"),
];

/// Names as they are read, and help, of all there is.
pub fn describe() -> impl Iterator<Item = (String, &'static str)> {
    let counted = COUNTED.iter().map(|(name, help)| {
        let ending = if name.ends_with("_duration") {
            "seconds"
        } else {
            "total"
        };
        (format!("{name}_{ending}"), *help)
    });
    counted.chain(LOOKED_UP.iter().map(|(name, help)| ((*name).to_owned(), *help)))
}

/// A figure that was looked up for whoever reads now.
#[derive(Debug, Clone)]
pub struct Gauge {
    /// One of those that [`describe`] knows.
    pub name: &'static str,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    operation: &'static str,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

fn times<L: Clone + std::hash::Hash + Eq>() -> Times<L> {
    Family::new_with_constructor(histogram)
}

#[derive(Debug)]
pub struct Families {
    registry: Registry,
    calls: Family<Call, Counter>,
    call_times: Times<Method>,
    operations: Times<Operation>,
    stages: Times<Stage>,
    pulls: Family<Outcome, Counter>,
    pull_time: Histogram,
    exits: Family<Reason, Counter>,
}

impl Families {
    pub fn new() -> Self {
        let mut families = Self {
            registry: Registry::default(),
            calls: Family::default(),
            call_times: times(),
            operations: times(),
            stages: times(),
            pulls: Family::default(),
            pull_time: histogram(),
            exits: Family::default(),
        };
        let help = |name: &str| {
            COUNTED
                .iter()
                .find(|(known, _)| *known == name)
                .map_or("", |found| found.1)
        };
        let all = &mut families.registry;
        all.register("wharf_rpc", help("wharf_rpc"), families.calls.clone());
        let mut timed = |name: &str, metric: Timed| {
            let unit = Unit::Seconds;
            match metric {
                Timed::Method(metric) => all.register_with_unit(name, help(name), unit, metric),
                Timed::Operation(metric) => all.register_with_unit(name, help(name), unit, metric),
                Timed::Stage(metric) => all.register_with_unit(name, help(name), unit, metric),
                Timed::Plain(metric) => all.register_with_unit(name, help(name), unit, metric),
            }
        };
        timed("wharf_rpc_duration", Timed::Method(families.call_times.clone()));
        timed(
            "wharf_operation_duration",
            Timed::Operation(families.operations.clone()),
        );
        timed("wharf_operation_stage_duration", Timed::Stage(families.stages.clone()));
        timed("wharf_image_pull_duration", Timed::Plain(families.pull_time.clone()));
        all.register("wharf_image_pulls", help("wharf_image_pulls"), families.pulls.clone());
        all.register(
            "wharf_container_exits",
            help("wharf_container_exits"),
            families.exits.clone(),
        );
        families
    }

    pub fn call(&self, path: &str, code: u16, taken: Duration) {
        // A client may make up names; those that nobody serves are all one.
        let method = match code {
            UNIMPLEMENTED => "other",
            _ => path.rsplit('/').next().unwrap_or_default(),
        };
        let method = method.to_owned();
        let code = code_name(code);
        self.call_times
            .get_or_create(&Method { method: method.clone() })
            .observe(taken.as_secs_f64());
        self.calls.get_or_create(&Call { method, code }).inc();
    }

    pub fn operation(&self, operation: &'static str, taken: Duration, stages: &[(&'static str, Duration)]) {
        self.operations
            .get_or_create(&Operation { operation })
            .observe(taken.as_secs_f64());
        for &(stage, taken) in stages {
            self.stages
                .get_or_create(&Stage { operation, stage })
                .observe(taken.as_secs_f64());
        }
    }

    pub fn pull(&self, success: bool, taken: Duration) {
        let result = if success { "success" } else { "failure" };
        self.pulls.get_or_create(&Outcome { result }).inc();
        if success {
            self.pull_time.observe(taken.as_secs_f64());
        }
    }

    pub fn container_exit(&self, reason: &str) {
        let reason = reason.to_owned();
        self.exits.get_or_create(&Reason { reason }).inc();
    }

    pub fn render(&self, gauges: &[Gauge]) -> Result<String, Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.truncate(end);
        for (name, help) in LOOKED_UP {
            let mut of_name = gauges.iter().filter(|gauge| gauge.name == name).peekable();
            if of_name.peek().is_none() {
                continue;
            }
            // A counter's samples have an ending that its family has not.
            let (family, kind) = match name.strip_suffix("_total") {
                Some(family) => (family, "counter"),
                None => (name, "gauge"),
            };
            writeln!(text, "# HELP {family} {help}.\n# TYPE {family} {kind}")?;
            for gauge in of_name {
                let labels: Vec<_> = gauge
                    .labels
                    .iter()
                    .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
                    .collect();
                let labels = match labels.is_empty() {
                    true => String::new(),
                    false => format!("{{{}}}", labels.join(",")),
                };
                writeln!(text, "{name}{labels} {}", gauge.value)?;
            }
        }
        text.push_str("# EOF\n");
        Ok(text)
    }
}

/// One of the histograms, for registration.
enum Timed {
    Method(Times<Method>),
    Operation(Times<Operation>),
    Stage(Times<Stage>),
    Plain(Histogram),
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
