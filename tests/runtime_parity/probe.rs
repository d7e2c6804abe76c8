//! The script that looks around inside, and how its output is made comparable.

use std::collections::BTreeMap;

/// Prints sections headed `== name`. Changes nothing: it also runs where nothing would stop it.
pub const SCRIPT: &str = r#"
echo "== status"; cat /proc/self/status
echo "== limits"; cat /proc/self/limits
echo "== oom"; cat /proc/self/oom_score_adj
echo "== uid_map"; cat /proc/self/uid_map; cat /proc/self/gid_map; cat /proc/self/setgroups
echo "== cgroup"; cat /proc/self/cgroup
echo "== mountinfo"; cat /proc/self/mountinfo
echo "== dev"; cd /dev; find . ! -path './pts/[0-9]*' | sort | while read f; do stat -c '%n %F %a %u:%g %t:%T' "$f"; readlink "$f"; done; cd /
echo "== fds"; ls /proc/1/fd 2>&1; ls /proc/self/fd
echo "== attr"; cat /proc/self/attr/current 2>&1
echo "== session"; set -- $(cut -d' ' -f6,7 /proc/$$/stat); [ $1 = $$ ] && echo leader; echo $2
echo "== personality"; cat /proc/self/personality
echo "== timens"; readlink /proc/self/ns/time
echo "== id"; id; pwd; env | sort; hostname; umask
echo "== root"; ls -la / | while read mode links rest; do echo $mode ${rest%% ??? ??\ *} ${rest##* }; done
echo "== masked"; for f in keys timer_list kcore; do echo $f empty: $(cat /proc/$f 2>&1 | wc -c | grep -c '^0$'); done; ls /sys/firmware /proc/acpi 2>&1
echo "== write"; for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/bus /proc/sys /sys/kernel /sys/fs/cgroup; do test -w $f && echo $f writable; done; true
echo "== sysctl"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced 2>&1
echo "== cgroupfs"; cd /sys/fs/cgroup 2>/dev/null && for f in memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares cpu/cpu.cfs_quota_us devices/devices.list; do echo $f; sort $f 2>&1; done; ls; cd /
echo "== mknod"; mknod /tmp/n c 1 3 2>&1 && echo ok; (echo > /tmp/n) 2>&1; rm -f /tmp/n; mknod /tmp/b b 7 0 2>&1 && (cat /tmp/b 2>&1 | head -c 1); rm -f /tmp/b
echo "== mount"; mount -t tmpfs x /tmp 2>&1; umount /proc/sys 2>&1; unshare -m true 2>&1
echo "== pids"; ls /proc | grep '^[0-9]' | head -n 1; cat /proc/1/comm
echo "== net"; ls /sys/class/net 2>&1; ls /proc/sys/net/ipv4/conf 2>&1
echo "== signals"; grep -E 'Sig(Ign|Blk)' /proc/1/status
"#;

/// Lines of the status file that say something about confinement.
const STATUS: &[&str] = &[
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "SigBlk",
    "SigIgn",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Cpus_allowed_list",
    "Mems_allowed_list",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
];

/// Sections by name, each with its comparable lines.
pub fn sections(output: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in output.lines() {
        if let Some(next) = line.strip_prefix("== ") {
            name = next.to_string();
            sections.entry(name.clone()).or_default();
        } else if let Some(line) = comparable(&name, line) {
            sections.entry(name.clone()).or_default().push(line);
        }
    }
    if let Some(mounts) = sections.get_mut("mountinfo") {
        mounts.sort();
    }
    sections
}

fn comparable(section: &str, line: &str) -> Option<String> {
    match section {
        "status" => STATUS
            .contains(&line.split(':').next()?)
            .then(|| line.split_whitespace().collect::<Vec<_>>().join(" ")),
        "mountinfo" => mount(line),
        _ => Some(line.trim_end().to_string()),
    }
}

/// Mount point, its flags and propagation, then type, source and the file system's own options. Ids, device numbers
/// and paths on the host differ from run to run.
fn mount(line: &str) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let propagation: Vec<&str> = left[6..]
        .iter()
        .map(|tag| tag.split(':').next().unwrap_or(tag))
        .collect();
    Some(format!("{} {} [{}] {right}", left[4], left[5], propagation.join(" ")))
}
