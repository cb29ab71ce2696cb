use std::net::{Ipv4Addr, SocketAddr};

use axum::routing::get;
use futures::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::sleep,
};

use super::*;
use crate::places::{Bounds, Party, Places};

/// A connection whose bytes go through memory, so that time can pass at once.
struct Rig {
    client: DuplexStream,
    served: JoinHandle<End>,
    places: Places,
    end: CancellationToken,
    begun: Instant,
}

const HOUR: Duration = Duration::from_secs(3_600);

fn routes() -> Router {
    let quiet = || async {
        let pieces = stream::unfold(0, |piece| async move {
            if piece > 0 {
                sleep(3 * HOUR).await;
            }
            (piece < 3).then(|| (Ok::<_, std::io::Error>(format!("piece {piece}\n")), piece + 1))
        });
        Body::from_stream(pieces)
    };
    let endless = || async {
        Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 4_096]))))
    };
    Router::new()
        .route("/", get(|| async { "here\n" }))
        .route("/quiet", get(quiet))
        .route("/endless", get(endless))
        .route("/slow", get(|| async { sleep(2 * HOUR).await }))
}

fn rig() -> Rig {
    let places = Places::new(Bounds { all: 1, ..Bounds::USUAL });
    let place = places.take(party()).expect("it is free");
    let (client, stream) = duplex(16 << 10);
    let end = CancellationToken::new();
    let peer = Peer::anyone(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let served = tokio::spawn(carry(stream, peer, routes(), place, end.clone()));
    Rig { client, served, places, end, begun: Instant::now() }
}

fn party() -> Party {
    Party::of(Ipv4Addr::LOCALHOST.into())
}

impl Rig {
    async fn ask(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        self.client.write_all(request.as_bytes()).await.expect("it is open");
    }

    async fn read_until(&mut self, word: &str) -> String {
        let mut text = String::new();
        while !text.contains(word) {
            let mut piece = [0; 1_024];
            let read = self.client.read(&mut piece).await.expect("it is open");
            assert_ne!(read, 0, "it was closed after {text:?}");
            text += &String::from_utf8_lossy(&piece[..read]);
        }
        text
    }

    /// Waits for the end, and returns it with the seconds since the begin.
    async fn ended(self) -> (End, u64) {
        let Rig { client, served, begun, .. } = self;
        let end = served.await.expect("it doesn't panic");
        drop(client);
        (end, begun.elapsed().as_secs())
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_ends() {
    assert_eq!(rig().ended().await, (End::Head, 10));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_ends_in_the_time_of_a_whole_one() {
    let mut rig = rig();
    rig.ask("/").await;
    rig.read_until("here\n").await;
    for byte in b"GET / HTTP/1.1\r\n" {
        let Ok(()) = rig.client.write_all(&[*byte]).await else { break };
        sleep(Duration::from_secs(3)).await;
    }
    let (end, after) = rig.ended().await;
    assert!(end == End::Head && (10..=48).contains(&after), "{end:?} after {after} s");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_lasts_longer_than_a_minute_and_not_for_ever() {
    let mut rig = rig();
    for _ in 0..3 {
        rig.ask("/").await;
        rig.read_until("here\n").await;
        sleep(Duration::from_secs(60)).await;
    }
    // The last answer was after 120 s.
    assert_eq!(rig.ended().await, (End::Idle, 195));
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_nothing_for_hours_are_not_cut() {
    let mut quiet = rig();
    quiet.ask("/quiet").await;
    quiet.read_until("piece 2").await;
    assert_eq!(quiet.begun.elapsed().as_secs() / 3_600, 6);
    let mut slow = rig();
    slow.ask("/slow").await;
    slow.read_until("200 OK").await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_ends() {
    let mut rig = rig();
    rig.ask("/endless").await;
    rig.read_until("x").await;
    assert_eq!(rig.ended().await, (End::Stalled, 60));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_gives_its_place_away_at_once() {
    let mut used = rig();
    used.ask("/").await;
    used.read_until("here\n").await;
    let _new = used.places.take(party()).expect("the idle one goes");
    assert_eq!(used.ended().await, (End::Evicted, 0));
    let unused = rig();
    let _new = unused.places.take(party()).expect("the silent one goes");
    assert_eq!(unused.ended().await, (End::Evicted, 0));
    let mut busy = rig();
    busy.ask("/slow").await;
    // The request must have come.
    sleep(Duration::from_secs(1)).await;
    assert!(busy.places.take(party()).is_err(), "a request under way stays");
    busy.read_until("200 OK").await;
}

#[tokio::test(start_paused = true)]
async fn the_request_under_way_is_the_last_one_at_the_end() {
    let mut rig = rig();
    rig.ask("/slow").await;
    sleep(Duration::from_secs(1)).await;
    rig.end.cancel();
    rig.read_until("200 OK").await;
    assert_eq!(rig.ended().await, (End::Usual, 7_200));
}
