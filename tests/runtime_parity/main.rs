mod fixture;
use fixture::*;
fn main() {
    nix::sys::prctl::set_child_subreaper(true).ok();
    let b = Bundle::new("smoke");
    b.write(&b.spec(&["sh", "-c", "cat /proc/self/status; cat /proc/self/mountinfo; ls -la /dev /proc/self/fd; id; env; pwd; cat /proc/self/cgroup"]));
    let h = wharf::runtime::handler("", "");
    println!(
        "{:?}",
        run(h.as_ref(), &b).map(|(c, t)| {
            println!("{t}");
            c
        })
    );
    remove_cgroups();
}
