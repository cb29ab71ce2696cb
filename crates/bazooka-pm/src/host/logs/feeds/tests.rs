//! The feeds over real files and the kernel's news.

use bazooka_sandbox::protocol::LOG_CURRENT;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        files::tests::{ID, Place},
        outputs::Owner,
    },
    *,
};

struct Feeding {
    place: Place,
    outputs: Outputs,
    feeds: Feeds,
    _loop: AbortOnDropHandle<()>,
}

fn owner(proc: &str) -> Owner {
    Owner { app: "a".parse().expect("valid"), proc: proc.parse().expect("valid") }
}

fn all() -> Asked {
    Asked { app: owner("web").app, proc: None, instance: None }
}

impl Feeding {
    fn begin() -> Feeding {
        let place = Place::new();
        let outputs = Outputs::new(BTreeMap::from([(ID, owner("web"))]));
        let pool = Pool::new("test", 1).expect("there is room");
        let (feeds, feeder) = Feeds::create(place.folders.clone(), pool, outputs.clone());
        Feeding { place, outputs, feeds, _loop: AbortOnDropHandle::new(tokio::spawn(feeder.run())) }
    }

    async fn join(&self, asked: &Asked) -> Joined {
        self.feeds.join(asked).await.expect("the loop runs")
    }
}

async fn next(joined: &mut Joined) -> Arc<Batch> {
    let batch = tokio::time::timeout(Duration::from_secs(20), joined.batches.recv()).await;
    batch.expect("it is told").expect("it is not late")
}

fn lines(batch: &Batch) -> Vec<(u64, String)> {
    let text = batch.pieces.concat();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_slice(line).expect("each line is JSON");
            let id = line["instance"].as_str().expect("it has one").parse().expect("a number");
            (id, line["line"].as_str().expect("it has one").to_owned())
        })
        .collect()
}

#[tokio::test]
async fn forty_followers_share_what_is_read_and_rendered_once() {
    let feeding = Feeding::begin();
    feeding.place.append("1 o before\n");
    let mut followers = Vec::new();
    for _ in 0..40 {
        followers.push(feeding.join(&all()).await);
    }
    let mut other = feeding.join(&Asked { proc: Some(owner("job").proc), ..all() }).await;
    feeding.place.append("2 o now\n");
    let first = next(&mut followers[0]).await;
    assert_eq!(lines(&first), [(ID.0, "now".to_owned())]);
    for follower in &mut followers[1..] {
        assert!(Arc::ptr_eq(&first, &next(follower).await), "it is the same batch");
    }
    assert!(other.batches.try_recv().is_err(), "that proc has said nothing");
    let at = feeding.join(&all()).await.at;
    assert_eq!(at, first.end, "who joins now begins after it");
}

#[tokio::test]
async fn new_instances_come_in_from_their_first_line_and_ended_ones_are_read_to_their_last() {
    let feeding = Feeding::begin();
    feeding.place.append("1 o before\n");
    let mut follower = feeding.join(&all()).await;
    let new = InstanceId(8);
    let folder = feeding.place.folders.log(new);
    std::fs::create_dir_all(&folder).expect("there is room");
    std::fs::write(folder.join(LOG_CURRENT), "2 o first\n").expect("it can be written");
    feeding.outputs.add(new, &owner("web").app, &owner("web").proc);
    assert_eq!(lines(&*next(&mut follower).await), [(new.0, "first".to_owned())]);
    feeding.place.append("3 o last\n");
    let ended = feeding.place.folders.ended().join(ID.to_string());
    std::fs::rename(feeding.place.folders.instance(ID), ended).expect("it can be moved");
    assert_eq!(lines(&*next(&mut follower).await), [(ID.0, "last".to_owned())]);
    feeding.outputs.forget(&[ID]);
    std::fs::write(folder.join(LOG_CURRENT), "2 o first\n4 o second\n").expect("it can be written");
    let batch = next(&mut follower).await;
    assert_eq!(lines(&batch), [(new.0, "second".to_owned())]);
    assert!(!batch.end.contains_key(&ID), "its output has gone");
}

#[tokio::test]
async fn who_is_late_goes_on_from_its_last_batch_to_where_it_joins_again() {
    let feeding = Feeding::begin();
    feeding.place.append("");
    let (mut late, mut quick) = (feeding.join(&all()).await, feeding.join(&all()).await);
    let mut told = Vec::new();
    for n in 0..12_u32 {
        if n == 6 {
            feeding.place.rotate();
        }
        feeding.place.append(&format!("{n} o {n}\n"));
        told.extend(lines(&*next(&mut quick).await));
    }
    let all_lines: Vec<(u64, String)> = (0..12).map(|n| (ID.0, n.to_string())).collect();
    assert_eq!(told, all_lines, "nobody waits for a slow follower");
    assert!(matches!(late.batches.recv().await, Err(broadcast::error::RecvError::Lagged(8))));
    let again = feeding.join(&all()).await;
    let procs = feeding.outputs.asked(&all());
    let (pieces, at, is_more) =
        catch_up(&feeding.place.folders, &all().app, &procs, (*late.at).clone(), &again.at);
    let missed = Batch { pieces, end: Arc::new(at) };
    assert_eq!((lines(&missed), is_more), (all_lines, false));
    assert_eq!(missed.end, again.at);
}
