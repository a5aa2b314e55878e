use proptest::prelude::*;

use super::*;

const AGEING: TimeDelta = TimeDelta::seconds(60);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_760_000_000 + seconds, 0).expect("a time")
}

fn project(number: usize) -> ProjectName {
    format!("p{number}").parse().expect("a name")
}

/// A build of a test, in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    number: usize,
    accepted_at: DateTime<Utc>,
    priority: i16,
}

fn waiting(project: ProjectName, asked: Asked) -> Waiting<Asked> {
    Waiting {
        project,
        rank: rank(asked.accepted_at, asked.priority, AGEING),
        build: asked,
    }
}

#[test]
fn equal_priorities_are_served_by_age() {
    let asked = |number, seconds| Asked {
        number,
        accepted_at: at(seconds),
        priority: 0,
    };
    let queue: Vec<_> = [asked(0, 5), asked(1, 3), asked(2, 4)]
        .map(|asked| waiting(project(0), asked))
        .into();
    let order: Vec<_> = starts(&queue, &BTreeMap::new(), 9)
        .iter()
        .map(|started| started.build.number)
        .collect();
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn limits_hold_one_project_back_and_no_other() {
    let queue: Vec<_> = (0..6)
        .map(|number| Asked {
            number,
            accepted_at: at(i64::try_from(number).expect("small")),
            priority: 0,
        })
        .map(|asked| waiting(project(asked.number % 2), asked))
        .collect();
    let full = Share {
        room: Some(1),
        ..Share::default()
    };
    let order: Vec<_> = starts(&queue, &BTreeMap::from([(project(0), full)]), 9)
        .iter()
        .map(|started| started.build.number)
        .collect();
    assert_eq!(order, [0, 1, 3, 5]);
}

#[test]
fn numbers_that_can_not_be_meant_are_refused() {
    assert_eq!(QueueConfig::default().check(), Ok(()));
    let limits = |limits| QueueConfig {
        project_limits: limits,
        ..QueueConfig::default()
    };
    let none = ProjectLimits::default();
    for bad in [
        QueueConfig {
            priority_ageing_seconds: MAX_AGEING_SECONDS + 1,
            ..QueueConfig::default()
        },
        limits(ProjectLimits {
            starts_per_minute: Some(0),
            ..none
        }),
        limits(ProjectLimits {
            queued: Some(ProjectLimits::MAX + 1),
            ..none
        }),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    assert!(Weight::new(0).is_err() && Weight::new(1001).is_err());
}

/// What happens in a queue: somebody asks, so many seconds later, or so many builds start.
#[derive(Clone, Debug)]
enum Act {
    Ask(i64, i16),
    Start(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_i64..200, -5_i16..6).prop_map(|(later, priority)| Act::Ask(later, priority)),
        1 => (1_usize..4).prop_map(Act::Start),
    ]
}

proptest! {
    /// The bound on being passed, whenever places come free.
    #[test]
    fn nobody_is_passed_by_who_came_later_than_priority_is_worth(acts in proptest::collection::vec(act(), 1..60)) {
        let (mut queue, mut now) = (Vec::new(), 0);
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Ask(later, priority) => {
                    now += later;
                    queue.push(waiting(project(0), Asked { number, accepted_at: at(now), priority }));
                }
                Act::Start(room) => {
                    for started in starts(&queue, &BTreeMap::new(), room) {
                        queue.retain(|build| build != &started);
                        let first = started.build;
                        for passed in queue.iter().map(|build| build.build).filter(|passed| passed.number < first.number) {
                            let worth = AGEING * i32::from(first.priority - passed.priority);
                            prop_assert!(first.accepted_at - passed.accepted_at < worth, "{first:?} passed {passed:?}");
                        }
                    }
                }
            }
        }
    }

    /// While all of them wait, nobody gets more than its share of the places, rounded up.
    #[test]
    fn places_are_shared_by_weight(weights in proptest::collection::vec(1_u16..50, 1..6), places in 0_usize..200) {
        let shares: BTreeMap<_, _> = (0..).zip(&weights)
            .map(|(number, &weight)| (project(number), Share { weight: Weight(weight), ..Share::default() }))
            .collect();
        let queue: Vec<_> = shares.keys()
            .flat_map(|name| (0..places).map(|number| waiting(name.clone(), Asked { number, accepted_at: at(0), priority: 0 })))
            .collect();
        let started = starts(&queue, &shares, places);
        prop_assert_eq!(started.len(), places);
        let all: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
        for (name, share) in &shares {
            let got = started.iter().filter(|build| build.project == *name).count();
            prop_assert!(got <= (places * usize::from(share.weight.0)).div_ceil(all), "{name} has {got} of {places}");
        }
    }

    /// However much others ask for and have, who has least for its weight goes next, so nobody starves.
    #[test]
    fn nobody_starves_beside_others(
        acts in proptest::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 1..80),
        weights in proptest::collection::vec(1_u16..9, 4),
    ) {
        let mut shares: BTreeMap<_, _> = (0..).zip(&weights)
            .map(|(number, &weight)| (project(number), Share { weight: Weight(weight), ..Share::default() }))
            .collect();
        let mut queue = Vec::new();
        for (number, (who, room, ends)) in acts.into_iter().enumerate() {
            let name = project(who);
            let asked = Asked { number, accepted_at: at(i64::try_from(number).expect("small")), priority: 0 };
            queue.push(waiting(name.clone(), asked));
            if ends {
                shares.entry(name).and_modify(|share| share.live = share.live.saturating_sub(1));
            }
            for started in starts(&queue, &shares, room) {
                let its = shares[&started.project];
                queue.retain(|build| build != &started);
                for waits in &queue {
                    let other = shares[&waits.project];
                    prop_assert!(
                        u64::from(its.live) * u64::from(other.weight.0) <= u64::from(other.live) * u64::from(its.weight.0),
                        "{} had less than {}", waits.project, started.project
                    );
                }
                shares.entry(started.project).and_modify(|share| share.live += 1);
            }
        }
    }
}
