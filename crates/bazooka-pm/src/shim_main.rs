//! bazooka-shim: stands between bazooka-pm and one instance; what it does is in [`bazooka_sandbox::shim`].

fn main() -> std::process::ExitCode {
    bazooka_sandbox::shim::main()
}
