//! bazooka-shim: stands between bazooka-pm and one instance; what it does is in [`bazooka_pm::shim`].

fn main() -> std::process::ExitCode {
    bazooka_pm::shim::main()
}
