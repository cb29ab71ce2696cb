//! The programs of scenarios and packages hold none of the faults that the simulation plants.

use std::process::Command;

use bazooka_tests::program;
use visor::planted::MARKER;

#[test]
fn no_program_holds_a_switch() {
    let marker = std::str::from_utf8(MARKER).expect("the marker is text");
    for name in ["bazooka", "bazooka-pm", "bazooka-shim", "bazooka-rm", "bazooka-proxy"] {
        let searched = Command::new("grep")
            .args(["--quiet", "--text", "--fixed-strings", marker])
            .arg(program(name))
            .status()
            .expect("grep runs");
        assert_eq!(searched.code(), Some(1), "{name} holds faults: the feature `planted` of visor is on");
    }
}
