//! The text of the default profile.

use std::path::Path;

/// What a container may not do, whatever its capabilities: change the node through /proc and /sys, mount, read the
/// kernel's memory. All else is left to capabilities, seccomp and namespaces.
///
/// AppArmor's patterns know no "all but": what is denied below /proc/sys and /sys is everything that differs from the
/// exception in one of its first letters.
const RULES: &str = r"
  network,
  capability,
  file,
  umount,

  # The node's own processes stop and watch the container; the container's processes do so among themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer={runc,crun},
  signal (send,receive) peer=NAME,
  ptrace (trace,read,tracedby,readby) peer=NAME,

  deny mount,

  # Of /proc only processes and the parameters of shared memory, which belong to the pod.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/kcore rwklx,

  # Of /sys only the cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
";

/// The profile `name`. `library` is where AppArmor's own pieces lie (`/etc/apparmor.d`); each is used if it is there.
pub(super) fn text(name: &str, library: &Path) -> String {
    let has = |piece: &str| library.join(piece).is_file();
    let mut text = String::new();
    if has("tunables/global") {
        text.push_str("#include <tunables/global>\n");
    } else {
        text.push_str("@{PROC}=/proc/\n");
    }
    text.push_str(&format!(
        "\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n"
    ));
    if has("abstractions/base") {
        text.push_str("  #include <abstractions/base>\n");
    }
    text.push_str(&RULES.replace("NAME", name));
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_the_library_are_used_where_they_are() {
        let bare = text("mine", Path::new("/no/such/directory"));
        assert!(bare.starts_with("@{PROC}=") && !bare.contains("#include"), "{bare}");
        assert!(bare.contains("profile mine flags=") && bare.contains("peer=mine,") && !bare.contains("NAME"));
        let library = std::env::temp_dir().join(format!("wharf-apparmor.d-{}", std::process::id()));
        for piece in ["tunables/global", "abstractions/base"] {
            let path = library.join(piece);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let whole = text("mine", &library);
        std::fs::remove_dir_all(&library).unwrap();
        assert!(
            whole.starts_with("#include <tunables/global>\n") && whole.contains("  #include <abstractions/base>\n")
        );
    }

    #[test]
    fn braces_close_and_every_rule_ends() {
        let text = text("mine", Path::new("/no/such/directory"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        for line in text
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("  #"))
        {
            assert!(line.ends_with(','), "{line:?}");
        }
    }
}
