//! A steady load from the command line; what became of it as JSON.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use bazooka_tests::{Kind, Load, LoadOptions};
use clap::Parser;

/// A steady load, counted request by request.
#[derive(Clone, Parser)]
struct Arguments {
    /// Where to ask, as address:port; each gets its share
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
    /// The Host header
    #[arg(long)]
    host: String,
    /// Requests a second, in all
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// For how many seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many connections at a time, for each address and kind
    #[arg(long, default_value_t = 50)]
    connections: u32,
    /// A connection for each request
    #[arg(long)]
    new_connections: bool,
    /// POST with a small body instead of GET
    #[arg(long)]
    post: bool,
    /// Both methods over both kinds of connections, instead of one
    #[arg(long, conflicts_with_all = ["new_connections", "post"])]
    all: bool,
    /// Later than this is lost, in milliseconds
    #[arg(long, default_value_t = 1000)]
    deadline_ms: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let one = Kind { post: arguments.post, new: arguments.new_connections };
    let load = Load::start(LoadOptions {
        addresses: arguments.addresses,
        hosts: vec![arguments.host],
        rate: arguments.rate,
        connections: arguments.connections,
        kinds: if arguments.all { Kind::ALL.to_vec() } else { vec![one] },
        deadline: Duration::from_millis(arguments.deadline_ms),
    });
    std::thread::sleep(Duration::from_secs(arguments.seconds));
    let mut out = std::io::stdout();
    serde_json::to_writer(&mut out, &load.stop())?;
    writeln!(out)?;
    Ok(())
}
