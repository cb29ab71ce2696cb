//! Tests of the planner, case by case.

use std::time::Duration;

use visor::{
    names::{InstanceId, ReleaseId},
    schema::{Desired, Fault, ReleaseStatus, State},
};

use super::fixture::World;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// An app whose head is v1 with a web, on two hosts.
fn app() -> World {
    World::new().hosts(2).app("a").released("web")
}

/// `n` healthy instances of v1's web, 1 to n, in turn on two hosts.
fn serving(n: u64) -> World {
    let mut world = app().scaled("web", u32::try_from(n).expect("small"));
    for id in 1..=n {
        world = world.running(id, if id % 2 == 1 { "host1" } else { "host2" });
    }
    world.after(seconds(100))
}

mod placement {
    use super::*;

    #[test]
    fn what_is_wanted_and_not_there_is_placed_in_turn_on_the_hosts() {
        assert_eq!(
            app().scaled("web", 3).steps(),
            ["place web.0@v1 on host1", "place web.1@v1 on host2", "place web.2@v1 on host1"]
        );
    }

    #[test]
    fn what_is_there_is_not_placed_twice() {
        assert!(app().scaled("web", 1).placed(1, "web@v1", "host1").steps().is_empty());
    }

    #[test]
    fn a_new_instance_takes_the_lowest_free_place() {
        let mut world = serving(3).scaled("web", 3).meant_to(1, Desired::Stop);
        assert_eq!(world.steps(), ["place web.0@v1 on host2"]);
    }

    #[test]
    fn the_first_instance_of_each_service_comes_before_the_second_of_any() {
        let mut world = World::new().hosts(1);
        world.edit_host("host1", |host| host.capacity.instances = 2);
        let mut world =
            world.app("a").released("web").scaled("web", 5).app("b").released("web").scaled("web", 1);
        let steps = world.steps();
        assert_eq!(
            steps,
            [
                "place web.0@v1 on host1",
                "pend web: 4 short of v1: the only host can't take it",
                "place web.0@v1 on host1",
            ]
        );
    }

    #[test]
    fn a_shortfall_is_said_once_with_each_hosts_refusal() {
        let mut world = app().scaled("web", 1);
        world.mark("host1", |meta| meta.cordoned = true);
        world.edit_host("host2", |host| host.capacity.instances = 0);
        let plan = world.plan();
        let super::super::step::Act::Pend { pending: Some(hindrance), .. } = &plan.steps[0].act else {
            panic!("{plan:?}")
        };
        let refusals: Vec<String> =
            hindrance.refusals.iter().map(|(host, why)| format!("{host} {why}")).collect();
        assert_eq!(refusals, ["host1 is cordoned", "host2 is full: 0 of 0 instances"]);
        assert_eq!(plan.waiting_for_capacity.len(), 1);
        let row = world.row(visor::schema::Pending {
            release: hindrance.release,
            short: hindrance.short,
            reason: hindrance.reason.clone(),
            refusals: hindrance.refusals.clone(),
            since: world.now.wall,
            extra: Default::default(),
        });
        let web = world.proc("web");
        world.view().pending.insert(web, row);
        assert!(world.steps().is_empty());
        world.mark("host1", |_| {});
        assert_eq!(world.steps(), ["place web.0@v1 on host1", "clear web"]);
    }

    #[test]
    fn what_is_too_much_for_one_plan_is_placed_by_the_next() {
        let mut world = World::new().hosts(90).app("a").released("web").scaled("web", 8_500);
        let plan = world.plan();
        assert_eq!(plan.steps.len(), 8_000);
        assert_eq!(plan.look_again.get(&world.name("a")), Some(&world.now.clock));
        assert!(plan.waiting_for_capacity.is_empty());
    }

    #[test]
    fn a_host_where_it_ran_out_of_memory_is_the_last_choice() {
        let mut world = app().scaled("web", 1).placed(1, "web@v1", "host1");
        world.say(1, State::Failed, |status| status.fault = Some(Fault::OutOfMemory));
        assert_eq!(world.steps(), ["put away 1", "place web.0@v1 on host2"]);
    }

    #[test]
    fn a_host_whose_fault_it_was_is_not_tried_again_at_once_even_if_it_is_the_only_one() {
        let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 1);
        world = world.placed(1, "web@v1", "host1");
        world.say(1, State::Failed, |status| {
            status.fault = Some(Fault::Host);
            status.cause = Some("the disk is full".into());
        });
        let plan = world.plan();
        assert_eq!(plan.waiting_for_capacity.len(), 1);
        assert!(plan.look_again.values().all(|at| *at > world.now.clock));
        assert_eq!(world.after(seconds(1)).steps(), ["put away 1", "place web.0@v1 on host1"]);
    }
}

mod what_is_not_there {
    use super::*;

    #[test]
    fn an_empty_image_stops_nothing() {
        let mut world = World::new();
        assert_eq!(world.plan(), Default::default());
    }

    #[test]
    fn an_app_whose_rows_are_missing_is_left_alone() {
        type Break = fn(&mut World);
        let broken: [(&str, Break); 5] = [
            ("apps/a ", |w| w.view().app = None),
            ("apps/a/releases/v1 ", |w| w.view().releases.clear()),
            ("apps/a/revs/", |w| w.view().revs.clear()),
            ("apps/a/formation/web ", |w| w.view().formation.clear()),
            ("apps/a/head ", |w| w.view().head = None),
        ];
        for (key, break_it) in broken {
            let mut world = serving(2);
            break_it(&mut world);
            let plan = world.plan();
            assert!(plan.steps.is_empty(), "{key}: {:?}", plan.steps);
            let why: Vec<&String> = plan.blocked.values().collect();
            assert!(why[0].starts_with(key) && why[0].ends_with("is missing"), "{why:?}");
        }
    }

    #[test]
    fn an_app_with_a_row_that_cannot_be_read_is_left_alone() {
        let mut world = serving(2);
        world.view().formation.clear();
        world.snapshot.unreadable.insert("apps/a/formation/web".into(), "no JSON".into());
        let plan = world.plan();
        assert!(plan.steps.is_empty() && plan.blocked.len() == 1, "{plan:?}");
    }

    #[test]
    fn an_instance_whose_rows_cannot_be_read_counts_and_is_left_alone() {
        for key in ["assigned/host1/1", "status/host1/1"] {
            let mut world = serving(2);
            let host = world.host("host1");
            let view = world.snapshot.hosts.get_mut(&host).expect("it is there");
            if key.starts_with("assigned") {
                view.assigned.clear()
            } else {
                view.status.clear()
            }
            world.snapshot.unreadable.insert(key.into(), "no JSON".into());
            assert!(world.steps().is_empty());
            assert_eq!(world.scaled("web", 1).steps(), ["stop 2"]);
        }
    }

    #[test]
    fn a_host_whose_row_cannot_be_read_is_not_taken_for_gone() {
        let mut world = serving(2);
        world.lose("host1");
        world.snapshot.unreadable.insert("hosts/host1".into(), "no JSON".into());
        assert!(world.after(seconds(60)).steps().is_empty());
    }
}

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

mod ending {
    use super::*;

    #[test]
    fn what_serves_is_drained_first_if_there_is_a_proxy() {
        assert_eq!(serving(2).proxy("p", 1, &[]).scaled("web", 1).steps(), ["drain 2"]);
    }

    #[test]
    fn what_never_ran_is_stopped_without_a_drain() {
        let mut world = serving(2).says(2, State::Claimed).proxy("p", 1, &[]).scaled("web", 1);
        assert_eq!(world.steps(), ["stop 2"]);
    }

    /// Instance 2 drains.
    fn draining() -> World {
        serving(2).scaled("web", 1).meant_to(2, Desired::Drain)
    }

    #[test]
    fn it_is_stopped_once_every_proxy_has_taken_it_out() {
        let revision = draining().snapshot.revision;
        assert!(draining().proxy("p", revision, &[]).proxy("q", revision - 1, &[]).steps().is_empty());
        assert_eq!(draining().proxy("p", revision, &[]).proxy("q", revision, &[]).steps(), ["stop 2"]);
    }

    #[test]
    fn it_is_not_stopped_while_a_session_is_left_on_it() {
        let revision = draining().snapshot.revision;
        assert!(draining().proxy("p", revision, &[2]).steps().is_empty());
        assert_eq!(draining().proxy("p", revision, &[1]).steps(), ["stop 2"]);
    }

    #[test]
    fn its_drain_time_ends_after_thirty_seconds() {
        let mut world = draining().proxy("p", 1, &[]);
        let plan = world.plan();
        assert_eq!(plan.look_again.values().next(), Some(&(world.now.clock + seconds(30))));
        assert!(world.after(seconds(29)).steps().is_empty());
        assert_eq!(draining().proxy("p", 1, &[]).after(seconds(30)).steps(), ["stop 2"]);
    }

    #[test]
    fn one_that_crashes_while_it_drains_is_stopped() {
        assert_eq!(draining().proxy("p", 1, &[]).says(2, State::Backoff).steps(), ["stop 2"]);
    }

    #[test]
    fn one_that_has_ended_is_put_away() {
        let mut world = serving(2).scaled("web", 1).meant_to(2, Desired::Stop);
        assert!(world.steps().is_empty());
        assert_eq!(world.says(2, State::Exited).steps(), ["put away 2"]);
    }

    #[test]
    fn one_whose_assignment_has_gone_is_put_away_and_replaced() {
        let mut world = serving(1);
        let host = world.host("host1");
        world.snapshot.hosts.get_mut(&host).expect("there").assigned.clear();
        assert_eq!(world.steps(), ["put away 1", "place web.0@v1 on host1"]);
    }

    #[test]
    fn stories_stay_few() {
        let mut world = serving(2).scaled("web", 1).meant_to(2, Desired::Stop).says(2, State::Exited);
        let ended = |world: &mut World, ids: std::ops::Range<u64>| {
            let web = world.proc("web");
            let instance = world.view().instances[&InstanceId(2)].value.clone();
            for id in ids {
                let row = world.row(visor::schema::Ended {
                    instance: instance.clone(),
                    status: None,
                    reason: None,
                    at: world.now.wall,
                    extra: Default::default(),
                });
                world.view().history.insert((web.clone(), InstanceId(id)), row);
            }
        };
        ended(&mut world, 100..120);
        let super::super::step::Act::PutAway { oldest, .. } = &world.plan().steps[0].act else { panic!() };
        assert_eq!(*oldest, [InstanceId(100)]);
        ended(&mut world, 120..220);
        assert_eq!(world.steps(), ["put away 2", "forget 50"]);
    }
}

mod trials {
    use super::*;

    #[test]
    fn one_instance_of_each_proc_that_is_wanted_runs_beside_the_old_ones() {
        let mut world = World::new().hosts(1).app("a").released("job web").scaled("web", 1).scaled("job", 0);
        world = world.running(1, "host1").trying("job web other");
        assert_eq!(world.steps(), ["try web.0@v2 on host1"]);
    }

    #[test]
    fn it_is_verified_once_it_has_been_healthy_for_a_second() {
        let world = || serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
        assert!(world().after(Duration::from_millis(999)).steps().is_empty());
        assert_eq!(world().after(seconds(1)).steps(), ["verify v2"]);
    }

    #[test]
    fn a_proc_can_ask_for_a_longer_time() {
        let world = || {
            let world = serving(2).trying("web").settings("web", |proc| proc.min_ready_ms = Some(5_000));
            world.placed(3, "web@v2", "host1").says(3, State::Running)
        };
        assert!(world().after(Duration::from_millis(4_999)).steps().is_empty());
        assert_eq!(world().after(seconds(5)).steps(), ["verify v2"]);
    }

    #[test]
    fn a_crash_meanwhile_begins_the_time_anew() {
        let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
        world = world.after(Duration::from_millis(900));
        world.say(3, State::Running, |status| status.restarts = 1);
        world = world.after(Duration::from_millis(900));
        assert!(world.steps().is_empty());
        assert_eq!(world.after(Duration::from_millis(100)).steps(), ["verify v2"]);
    }

    #[test]
    fn one_that_fails_fails_the_release_with_its_last_words_and_is_not_started_again() {
        let mut world = serving(2).trying("web").placed(3, "web@v2", "host1");
        world.say(3, State::Failed, |status| {
            status.cause = Some("exited with status 1".into());
            status.last_output = vec!["no such engine".into()];
        });
        assert_eq!(world.steps(), ["fail v2: web 3 on host1: exited with status 1\nno such engine"]);
        let failed = world.view().releases.get_mut(&ReleaseId(2)).expect("it is there");
        failed.value.status = ReleaseStatus::Failed;
        world.view().trial = None;
        assert_eq!(world.steps(), ["put away 3"]);
    }

    #[test]
    fn the_procs_of_a_trial_share_ten_starts_over_the_cluster() {
        let trial = |restarts: u32| {
            let mut world = World::new().hosts(2).app("a").released("web job cron");
            for (id, proc) in [(1, "web"), (2, "job"), (3, "cron")] {
                world =
                    world.scaled(proc, 1).placed(id, &format!("{proc}@v1"), "host1").says(id, State::Running);
            }
            world = world.after(seconds(100)).trying("web job cron");
            for (id, proc) in [(4, "web"), (5, "job"), (6, "cron")] {
                world = world.placed(id, &format!("{proc}@v2"), "host2");
                world.say(id, State::Claimed, |status| {
                    status.restarts = restarts;
                    status.cause = Some("exited with status 1".into());
                });
            }
            world.steps()
        };
        assert!(trial(2).is_empty(), "nine starts");
        let failed = trial(3);
        let wanted = "fail v2: its procs crashed 9 times in 12 starts; ";
        assert!(failed.iter().any(|step| step.starts_with(wanted)), "{failed:?}");
    }

    #[test]
    fn the_hosts_own_fault_is_tried_elsewhere_before_it_is_the_releases() {
        let mut world = serving(2).trying("web").placed(3, "web@v2", "host1");
        world.say(3, State::Failed, |status| status.fault = Some(Fault::Host));
        assert_eq!(world.steps(), ["put away 3", "try web.0@v2 on host2"]);
        world = world.placed(4, "web@v2", "host2");
        world.view().instances.remove(&InstanceId(3));
        world.say(4, State::Failed, |status| status.fault = Some(Fault::Host));
        assert_eq!(world.steps(), ["fail v2: web 4 on host2: no cause given"]);
    }

    #[test]
    fn no_room_for_fifteen_seconds_fails_it() {
        let mut world = serving(2).trying("web");
        for host in ["host1", "host2"] {
            world.edit_host(host, |host| host.capacity.instances = 1);
        }
        world = world.after(Duration::from_millis(14_999));
        assert_eq!(world.steps(), ["pend web: 1 short of v2: none of 2 hosts can take it"]);
        let steps = world.after(Duration::from_millis(1)).steps();
        assert!(steps[0].starts_with("fail v2: no instance of web could be placed within 15 s"), "{steps:?}");
    }

    #[test]
    fn one_that_never_becomes_healthy_fails_it_after_what_it_may_take_and_thirty_seconds() {
        let world = || serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Claimed);
        assert!(world().after(seconds(90)).steps().is_empty());
        // The boot timeout, the minimum ready time, and 30 s.
        assert_eq!(world().after(seconds(91)).steps(), ["fail v2: web was not healthy within 91 s"]);
        let patient = || world().settings("web", |proc| proc.min_ready_ms = Some(600_000));
        assert!(patient().after(seconds(600)).steps().is_empty());
        assert_eq!(patient().after(seconds(690)).steps(), ["fail v2: web was not healthy within 690 s"]);
    }

    #[test]
    fn a_trial_whose_push_has_ended_fails() {
        let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
        world.view().trial = None;
        assert_eq!(world.steps(), ["fail v2: the push that tried it has ended", "stop 3"]);
    }

    #[test]
    fn a_trial_of_which_nothing_is_wanted_any_more_is_good() {
        let mut world = serving(0).trying("web");
        assert_eq!(world.steps(), ["verify v2"]);
    }

    #[test]
    fn a_proc_that_crashed_before_is_no_reason_to_refuse_the_new_release() {
        let mut world =
            World::new().hosts(1).app("a").released("fail web").scaled("web", 1).scaled("fail", 1);
        world = world.running(1, "host1").placed(2, "fail@v1", "host1").says(2, State::Backoff);
        world = world.trying("fail web");
        assert_eq!(world.steps(), ["try fail.0@v2 on host1", "try web.0@v2 on host1"]);
        world = world.placed(3, "web@v2", "host1").placed(4, "fail@v2", "host1");
        world = world.says(3, State::Running).says(4, State::Failed).after(seconds(1));
        assert_eq!(world.steps(), ["verify v2"]);
    }

    #[test]
    fn a_proc_that_crashed_before_is_waited_for_ten_seconds_at_most() {
        let mut world = serving(1).says(1, State::Backoff).trying("web").placed(2, "web@v2", "host1");
        world = world.says(2, State::Claimed).after(Duration::from_millis(9_999));
        assert!(world.steps().is_empty());
        assert_eq!(world.after(Duration::from_millis(1)).steps(), ["verify v2"]);
    }

    #[test]
    fn while_it_is_verified_its_instance_stays() {
        let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
        world.view().releases.get_mut(&ReleaseId(2)).expect("there").value.status = ReleaseStatus::Verified;
        assert!(world.after(seconds(100)).steps().is_empty());
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
        assert_eq!(failed(app().scaled("web", 1), [1]).steps(), ["put away 1", "place web.0@v1 on host1"]);
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
        assert_eq!(world.after(seconds(1)).steps(), ["put away 2", "place web.0@v1 on host1"]);
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

mod lost_hosts {
    use super::*;

    fn lost() -> World {
        let mut world = serving(2);
        world.lose("host1");
        world
    }

    #[test]
    fn its_instances_are_lost_after_a_moment() {
        assert!(lost().steps().is_empty());
        assert_eq!(lost().after(seconds(1)).steps(), ["lose 1"]);
    }

    #[test]
    fn what_is_lost_is_replaced_elsewhere_and_put_away_once_its_replacement_runs() {
        let mut world = lost().says(1, State::Lost);
        assert_eq!(world.steps(), ["place web.0@v1 on host2"]);
        world = world.placed(3, "web@v1", "host2");
        assert!(world.steps().is_empty());
        assert_eq!(world.says(3, State::Running).steps(), ["put away 1"]);
    }

    #[test]
    fn if_its_host_returns_before_the_replacement_runs_the_original_stays() {
        let mut world = lost().says(1, State::Lost).placed(3, "web@v1", "host2").says(3, State::Claimed);
        world.register("host1");
        assert_eq!(world.steps(), ["stop 3"]);
        assert_eq!(world.says(1, State::Running).steps(), ["stop 3"]);
    }

    #[test]
    fn with_nowhere_to_go_it_waits_for_its_host() {
        let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 1).running(1, "host1");
        world = world.after(seconds(100));
        world.lose("host1");
        world = world.after(seconds(1));
        assert_eq!(world.steps(), ["lose 1"]);
        world = world.says(1, State::Lost);
        assert_eq!(world.steps(), ["pend web: 1 short of v1: no host is registered"]);
        world.register("host1");
        assert!(world.steps().is_empty(), "it will say what has become of it");
    }

    #[test]
    fn an_end_under_way_there_is_brought_to_its_end() {
        let mut world = serving(2).scaled("web", 1).meant_to(1, Desired::Stop);
        world.lose("host1");
        world = world.after(seconds(1));
        assert_eq!(world.steps(), ["lose 1"]);
        assert_eq!(world.says(1, State::Lost).steps(), ["put away 1"]);
    }

    #[test]
    fn when_too_many_vanish_at_once_none_is_given_up() {
        let mut world = World::new().hosts(4).app("a").released("web").scaled("web", 4);
        for id in 1..=4 {
            world = world.running(id, &format!("host{id}"));
        }
        world = world.after(seconds(100));
        world.lose("host1");
        world.lose("host2");
        world = world.after(seconds(600));
        assert!(world.steps().is_empty());
        assert_eq!(world.memory.hosts.frozen().map(|hosts| hosts.len()), Some(2));
        world.register("host1");
        assert!(world.steps().is_empty(), "the other may follow it");
        assert_eq!(world.after(seconds(10)).steps(), ["lose 2"]);
    }
}
