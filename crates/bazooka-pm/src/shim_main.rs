//! bazooka-shim: stands between bazooka-pm and one instance. [`bazooka_sandbox::shim`] has the code.

fn main() -> std::process::ExitCode {
    bazooka_sandbox::shim::main()
}
