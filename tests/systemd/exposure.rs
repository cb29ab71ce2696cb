//! What systemd says of the units by itself.

use std::{path::PathBuf, process::Command};

fn unit(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd").join(name)
}

/// Each unit, and how exposed it may be at most, in tenths. bazooka-pm makes sandboxes, and bazooka-rm makes them for builds.
const UNITS: [(&str, u32); 5] = [
    ("bazooka-pm.service", 50),
    ("bazooka-rm.service", 50),
    ("bazooka-converge.service", 30),
    ("bazooka-proxy.service", 30),
    ("bazooka-haproxy.service", 30),
];

#[test]
fn no_unit_is_more_exposed_than_its_work_takes() {
    for (name, most) in UNITS {
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", &format!("--threshold={most}")])
            .arg(unit(name))
            .output()
            .expect("systemd-analyze is installed: apt-get install systemd");
        let said = String::from_utf8_lossy(&output.stdout);
        let level = said.lines().last().unwrap_or_default();
        assert!(output.status.success(), "{level}\n{said}{}", String::from_utf8_lossy(&output.stderr));
        eprintln!("{level}");
    }
}
