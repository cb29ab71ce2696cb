//! The answer to a reader, piece by piece.

use tokio_util::task::AbortOnDropHandle;

use super::{
    files::tests::{ID, Place},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

struct Told {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

struct Host {
    place: Place,
    teller: Teller,
    _loop: AbortOnDropHandle<()>,
}

impl Host {
    fn begin() -> Host {
        let place = Place::new();
        let owner = Owner { app: "a".parse().expect("valid"), proc: "web".parse().expect("valid") };
        let outputs = Outputs::new(Table::from([(ID, owner)]));
        let pools = Pools::create().expect("there is room");
        let (feeds, feeder) = Feeds::create(place.folders.clone(), pools.followed.clone(), outputs.clone());
        let teller = Teller { folders: place.folders.clone(), pools, outputs, feeds };
        Host { place, teller, _loop: AbortOnDropHandle::new(tokio::spawn(feeder.run())) }
    }

    fn tell(&self, n: usize, follow: bool) -> Told {
        let query =
            LogQuery { app: "a".parse().expect("valid"), proc: None, instance: None, n: Some(n), follow };
        let (send, pieces) = mpsc::channel(PIECES);
        let teller = self.teller.clone();
        let task = tokio::spawn(async move {
            let _ = teller.tell(query, &send).await;
        });
        Told { pieces, _task: AbortOnDropHandle::new(task) }
    }
}

impl Told {
    async fn lines(&mut self) -> Vec<String> {
        let piece = timeout(20 * SECOND, self.pieces.recv()).await.expect("it is told");
        let piece = piece.map(|piece| piece.expect("no piece is an error")).unwrap_or_default();
        let line = |line: &[u8]| {
            let line: serde_json::Value = serde_json::from_slice(line).expect("each line is JSON");
            line["line"].as_str().expect("it has one").to_owned()
        };
        piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(line).collect()
    }

    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        while all.last().is_none_or(|line| line != last) {
            let more = self.lines().await;
            assert!(!more.is_empty(), "it has ended after {:?}", all.last());
            all.extend(more);
        }
        all
    }
}

#[tokio::test]
async fn a_follower_is_told_the_past_and_then_what_comes_without_a_gap() {
    let host = Host::begin();
    host.place.append("1 o one\n2 o two\n3 o three\n4 o fo");
    let mut told = host.tell(2, true);
    assert_eq!(told.until("three").await, ["two", "three"]);
    host.place.append("ur\n");
    assert_eq!(told.lines().await, ["four"]);
    let mut once = host.tell(100, false);
    assert_eq!(once.until("four").await, ["one", "two", "three", "four"]);
    assert!(once.lines().await.is_empty(), "it ends");
}

#[tokio::test]
async fn who_takes_nothing_for_a_while_loses_nothing_and_holds_nobody() {
    let host = Host::begin();
    host.place.append("0 o 00000\n");
    let (mut slow, mut quick) = (host.tell(1, true), host.tell(1, true));
    // Both follow once each has been told something.
    assert_eq!(quick.until("00000").await, ["00000"]);
    assert_eq!(slow.until("00000").await, ["00000"]);
    let (lines, at_once) = (3_000, 100);
    let name = |n: usize| format!("{n:05}{}", "x".repeat(990));
    let expected: Vec<String> = (1..=lines).map(name).collect();
    let mut heard = Vec::new();
    for first in (1..=lines).step_by(at_once) {
        if first == 1_501 {
            host.place.rotate();
        }
        let text: String = (first..first + at_once).map(|n| format!("{n} o {}\n", name(n))).collect();
        host.place.append(&text);
        heard.extend(quick.until(&name(first + at_once - 1)).await);
    }
    assert_eq!(heard, expected);
    assert_eq!(slow.until(&name(lines)).await, expected);
    host.place.append("9999 o end\n");
    assert_eq!(slow.lines().await, ["end"]);
}
