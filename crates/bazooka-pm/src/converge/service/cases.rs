//! Cases of a service: its scale, its rollout, its failures.

use std::time::Duration;

use visor::{
    names::{InstanceId, ReleaseId},
    schema::State,
};

use super::super::fixture::{World, app, seconds, serving};

mod scaling_down {
    use super::*;

    #[test]
    fn the_highest_place_goes_first() {
        assert_eq!(serving(3).scaled("web", 1).steps(), ["stop 2", "stop 3"]);
    }

    #[test]
    fn what_fails_or_does_not_run_yet_goes_before_what_serves() {
        let mut world = serving(3).says(1, State::Backoff).says(2, State::Claimed).scaled("web", 1);
        assert_eq!(world.steps(), ["stop 2", "stop 1"]);
    }

    #[test]
    fn to_zero_takes_all_of_them_down() {
        assert_eq!(serving(2).scaled("web", 0).steps(), ["stop 2", "stop 1"]);
    }

    #[test]
    fn an_app_that_is_destroyed_is_taken_down() {
        let mut world = serving(2).destroying().trying("web");
        assert_eq!(world.steps(), ["fail v2: the app is being destroyed", "stop 2", "stop 1"]);
    }
}

mod rollouts {
    use super::*;

    /// `old` healthy instances of v1 and `new` of v2, which is head. Ids run on from v1's to v2's.
    fn rolling(old: u64, new: u64, count: u32) -> World {
        let mut world = app();
        for id in 1..=old {
            world = world.running(id, "host1");
        }
        world = world.released("web").scaled("web", count);
        for id in old + 1..=old + new {
            world = world.running(id, "host2");
        }
        world.after(seconds(100))
    }

    #[test]
    fn a_quarter_is_replaced_at_a_time() {
        let steps = rolling(8, 0, 8).steps();
        assert_eq!(steps, ["place web.0@v2 on host2", "place web.1@v2 on host1"]);
    }

    #[test]
    fn a_proc_can_say_how_many() {
        let mut world = rolling(8, 0, 8).settings("web", |proc| proc.batch = Some(5));
        assert_eq!(world.steps().len(), 5);
    }

    #[test]
    fn old_ones_go_as_new_ones_are_healthy() {
        // A quarter of four is one: the next instance starts once the leaving one has gone.
        assert_eq!(rolling(4, 1, 4).steps(), ["stop 4"]);
        assert_eq!(rolling(3, 1, 4).steps(), ["place web.1@v2 on host1"]);
        assert_eq!(rolling(1, 4, 4).steps(), ["stop 1"]);
    }

    #[test]
    fn a_new_one_counts_once_it_has_been_healthy_for_a_second() {
        let world = || rolling(1, 0, 1).placed(2, "web@v2", "host2").says(2, State::Running);
        assert!(world().after(Duration::from_millis(999)).steps().is_empty());
        assert_eq!(world().after(seconds(1)).steps(), ["stop 1"]);
    }

    #[test]
    fn one_that_has_crashed_counts_once_it_has_been_steady() {
        let mut world = rolling(1, 0, 1).placed(2, "web@v2", "host2");
        world.say(2, State::Running, |status| status.restarts = 1);
        let mut world = world.after(Duration::from_millis(9_999));
        assert!(world.steps().is_empty(), "the old one serves on");
        assert_eq!(world.after(seconds(1)).steps(), ["stop 1"]);
    }

    #[test]
    fn the_next_batch_waits_for_the_one_before() {
        let mut world = rolling(7, 0, 8).placed(20, "web@v2", "host1").placed(21, "web@v2", "host2");
        assert!(world.steps().is_empty());
    }

    #[test]
    fn where_the_proc_allows_it_old_ones_go_first() {
        let mut world = rolling(4, 0, 4).settings("web", |proc| proc.max_unavailable = 2);
        assert_eq!(world.steps(), ["stop 4", "stop 3", "place web.0@v2 on host2"]);
    }

    #[test]
    fn it_stops_and_says_why_when_new_ones_keep_failing() {
        let mut world = rolling(4, 0, 4).placed(5, "web@v2", "host1");
        world.say(5, State::Backoff, |status| status.cause = Some("exited with status 1".into()));
        let wanted = "pend web: 4 short of v2: the rollout of v2 waits: 1 of its 1 instances fail \
                      (web 5 on host1: exited with status 1)";
        assert_eq!(world.steps(), [wanted]);
    }

    #[test]
    fn a_proc_that_crashes_in_either_release_does_not_run_twice() {
        let world = rolling(1, 0, 1).says(1, State::Backoff).placed(2, "web@v2", "host1");
        assert_eq!(world.says(2, State::Backoff).steps()[0], "stop 1");
    }

    #[test]
    fn of_old_ones_that_crash_no_more_go_than_new_ones_are_there() {
        let mut world = rolling(4, 0, 4).placed(5, "web@v2", "host1").says(5, State::Backoff);
        for id in 1..=4 {
            world = world.says(id, State::Backoff);
        }
        let stopped = world.steps().iter().filter(|step| step.starts_with("stop")).count();
        assert_eq!(stopped, 1);
    }

    #[test]
    fn scaled_up_meanwhile_the_new_ones_come_at_once() {
        assert_eq!(rolling(2, 1, 10).steps().iter().filter(|s| s.starts_with("place")).count(), 7);
    }

    #[test]
    fn scaled_down_meanwhile_no_more_start_than_are_wanted() {
        assert_eq!(rolling(6, 2, 2).steps(), ["stop 6", "stop 5", "stop 4", "stop 3", "stop 2", "stop 1"]);
    }

    #[test]
    fn a_pause_lets_the_batch_that_has_begun_end_and_begins_no_other() {
        assert!(rolling(4, 0, 4).paused().steps().is_empty());
        assert!(rolling(3, 1, 4).paused().steps().is_empty());
        assert_eq!(rolling(4, 1, 4).paused().steps(), ["stop 4"]);
        let mut world = rolling(4, 0, 4).placed(5, "web@v2", "host1").paused();
        assert!(world.steps().is_empty(), "it isn't healthy yet");
    }

    #[test]
    fn a_pause_stands_in_no_scales_way() {
        let up = rolling(3, 1, 6).paused().steps();
        assert_eq!(up, ["place web.1@v2 on host2", "place web.2@v2 on host2"]);
        assert_eq!(rolling(3, 1, 2).paused().steps(), ["stop 3", "stop 2"]);
        assert_eq!(rolling(3, 1, 0).paused().steps().len(), 4);
    }

    #[test]
    fn a_pause_stands_in_no_drains_way() {
        let mut world = rolling(3, 1, 4).paused();
        world.mark("host1", |meta| meta.draining = true);
        // The old instances still run, and their replacements are of the new release.
        assert_eq!(world.steps(), ["place web.1@v2 on host2"]);
        let mut world = world.placed(5, "web@v2", "host2").says(5, State::Running).after(seconds(1));
        assert_eq!(world.steps(), ["stop 3"]);
    }

    #[test]
    fn what_an_old_one_leaves_while_paused_goes_to_a_new_one() {
        let mut world = rolling(3, 0, 4).paused();
        assert_eq!(world.steps(), ["place web.0@v2 on host2"]);
    }

    #[test]
    fn one_that_does_not_run_holds_no_place_of_one_that_does_while_paused() {
        let mut world = rolling(1, 1, 1).says(1, State::Backoff).paused();
        world.formation("web", |formation| formation.replace_before = Some(InstanceId(3)));
        assert_eq!(world.steps(), ["stop 1"]);
    }

    #[test]
    fn an_abort_leaves_the_old_ones_and_takes_the_new_ones_down_as_they_are_back() {
        let aborted = |old, new| {
            let mut world = rolling(old, new, 4);
            let head = visor::schema::Head { release: ReleaseId(1), extra: Default::default() };
            let row = world.row(head);
            world.view().head = Some(row);
            world.steps()
        };
        assert_eq!(aborted(4, 1), ["stop 5"]);
        assert_eq!(aborted(3, 1), ["place web.3@v1 on host2"]);
        assert_eq!(aborted(1, 3), ["place web.1@v1 on host2"]);
    }

    #[test]
    fn a_proc_that_the_new_release_has_not_goes() {
        let mut world = app().scaled("web", 1).running(1, "host1").released("job");
        assert_eq!(world.steps(), ["stop 1"]);
    }

    #[test]
    fn a_restart_replaces_each_before_it_is_stopped() {
        let mut world = serving(2);
        world.formation("web", |formation| formation.replace_before = Some(InstanceId(3)));
        assert_eq!(world.steps(), ["place web.0@v1 on host1"]);
        let mut world = world.running(3, "host1").after(seconds(1));
        assert_eq!(world.steps(), ["stop 2"]);
    }

    #[test]
    fn a_restart_of_one_leaves_the_others() {
        let mut world = serving(2);
        world.formation("web", |formation| formation.replace = [InstanceId(1)].into());
        assert_eq!(world.steps(), ["place web.0@v1 on host1"]);
        assert_eq!(world.running(3, "host1").after(seconds(1)).steps(), ["stop 1"]);
    }

    #[test]
    fn one_that_crashes_and_is_restarted_goes_as_soon_as_there_is_another() {
        let mut world = serving(1).says(1, State::Backoff);
        world.formation("web", |formation| formation.replace = [InstanceId(1)].into());
        world = world.placed(2, "web@v1", "host2");
        assert_eq!(world.steps(), ["stop 1"]);
    }

    #[test]
    fn a_host_that_is_drained_is_emptied_by_replacement() {
        let mut world = serving(2);
        world.mark("host1", |meta| meta.draining = true);
        assert_eq!(world.steps(), ["place web.0@v1 on host2"]);
        let mut world = world.running(3, "host2").after(seconds(1));
        assert_eq!(world.steps(), ["stop 1"]);
    }

    #[test]
    fn a_canary_is_kept_exactly_beside_the_rest() {
        let mut world = serving(2).canary("web", "web", 1);
        assert_eq!(world.steps(), ["place web.0@v2 on host1"]);
        world = world.placed(3, "web@v2", "host1").says(3, State::Running).after(seconds(1));
        assert!(world.steps().is_empty());
        world.formation("web", |formation| formation.beside.clear());
        assert_eq!(world.steps(), ["stop 3"]);
    }

    #[test]
    fn what_crashes_in_place_is_left_to_its_host() {
        assert!(serving(2).says(1, State::Backoff).steps().is_empty());
    }
}

mod failures {
    use super::*;

    fn failed(mut world: World, ids: impl IntoIterator<Item = u64>) -> World {
        for id in ids {
            world = world.placed(id, "web@v1", "host1").says(id, State::Failed);
        }
        world
    }

    #[test]
    fn a_first_failure_is_replaced_at_once() {
        assert_eq!(failed(app().scaled("web", 1), [1]).steps(), ["archive 1", "place web.0@v1 on host1"]);
    }

    #[test]
    fn further_ones_wait_longer_each_time_and_show_why_meanwhile() {
        let mut world = failed(app().scaled("web", 1), [1]);
        world.plan();
        world.view().instances.remove(&InstanceId(1));
        world = failed(world, [2]);
        let steps = world.steps();
        assert_eq!(steps.len(), 1, "{steps:?}");
        assert!(
            steps[0].starts_with("pend web: 1 short of v1: 2 instances of v1 failed lately"),
            "{steps:?}"
        );
        assert_eq!(world.after(seconds(1)).steps(), ["archive 2", "place web.0@v1 on host1"]);
    }

    #[test]
    fn a_release_that_fails_starts_ten_times_a_minute_at_most() {
        let mut world = app().scaled("web", 30);
        let mut starts = 0;
        let mut id = 0;
        let mut first_round = 0;
        for second in 0..120 {
            let placed: Vec<String> =
                world.steps().into_iter().filter(|step| step.starts_with("place")).collect();
            if second == 0 {
                first_round = placed.len();
            } else if second <= 60 {
                starts += placed.len();
            }
            let host = world.host("host1");
            let ended: Vec<InstanceId> = world.view().instances.keys().copied().collect();
            for old in ended {
                world.view().instances.remove(&old);
                world.snapshot.hosts.get_mut(&host).expect("there").assigned.remove(&old);
            }
            for _ in placed {
                id += 1;
                world = world.placed(id, "web@v1", "host1").says(id, State::Failed);
                let now = world.now.wall;
                world.view().instances.get_mut(&InstanceId(id)).expect("placed").value.placed_at = now;
            }
            world = world.after(seconds(1));
        }
        assert_eq!(first_round, 30, "nothing had failed yet");
        assert!(starts <= 10, "{starts}");
    }
}
