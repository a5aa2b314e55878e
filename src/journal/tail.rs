//! The newest of what many read, held in memory once for all of them. What is held is bounded for each tail and for
//! all of a replica; the oldest goes first, and whoever is behind that reads from Postgres.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

/// What a tail holds: something that ends at a sequence number.
pub(super) trait Item {
    /// Its last sequence number.
    fn last(&self) -> i64;
    /// Bytes of memory, roughly.
    fn cost(&self) -> usize;
}

/// How much is held, in bytes of memory.
#[derive(Clone, Copy, Debug)]
pub struct TailLimits {
    /// Of one build.
    pub build: usize,
    /// In all.
    pub total: usize,
}

impl Default for TailLimits {
    fn default() -> Self {
        Self {
            build: 2 << 20,
            total: 64 << 20,
        }
    }
}

/// What a reader finds.
pub(super) enum Look<T> {
    /// Something that goes on beyond where it is.
    Here(Arc<T>),
    /// What comes next is held no more.
    Behind,
    /// It has everything.
    CaughtUp,
    /// It has everything, and nothing will follow.
    Over,
    /// Nobody fills the tail.
    Abandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Growing,
    Over,
    Abandoned,
}

/// The tail of one sequence: everything after `start`.
pub(super) struct Tail<T> {
    held: Mutex<Held<T>>,
    grown: watch::Sender<()>,
}

struct Held<T> {
    start: i64,
    items: VecDeque<(u64, Arc<T>)>,
    bytes: usize,
    state: State,
}

impl<T: Item> Tail<T> {
    /// An empty tail that will hold what comes after `start`.
    pub(super) fn new(start: i64) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Held {
                start,
                items: VecDeque::new(),
                bytes: 0,
                state: State::Growing,
            }),
            grown: watch::Sender::new(()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held<T>> {
        // Nothing panics between two changes that belong together.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of growth, and of the end.
    pub(super) fn grown(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// What a reader finds that has everything up to `after`.
    pub(super) fn look(&self, after: i64) -> Look<T> {
        let held = self.lock();
        if after < held.start {
            return Look::Behind;
        }
        let index = held.items.partition_point(|(_, item)| item.last() <= after);
        match (held.items.get(index), held.state) {
            (Some((_, item)), _) => Look::Here(Arc::clone(item)),
            (None, State::Growing) => Look::CaughtUp,
            (None, State::Over) => Look::Over,
            (None, State::Abandoned) => Look::Abandoned,
        }
    }

    /// Whatever is to come has come.
    pub(super) fn end(&self) {
        self.set(State::Over);
    }

    /// Nobody fills it any more; readers have to look for themselves.
    pub(super) fn abandon(&self) {
        if self.lock().state == State::Growing {
            self.set(State::Abandoned);
        }
    }

    fn set(&self, state: State) {
        self.lock().state = state;
        self.grown.send_replace(());
    }
}

impl<T: Item> Held<T> {
    /// Lets go of the oldest item; returns its ticket and cost.
    fn evict(&mut self) -> Option<(u64, usize)> {
        let (ticket, item) = self.items.pop_front()?;
        let cost = item.cost();
        self.start = item.last();
        self.bytes -= cost;
        Some((ticket, cost))
    }
}

/// What all tails of one kind hold together.
pub(super) struct Shelf<T>(Mutex<Stock<T>>);

struct Stock<T> {
    limits: TailLimits,
    bytes: usize,
    /// Everything that is held, oldest first, with its cost.
    order: BTreeMap<u64, (usize, Weak<Tail<T>>)>,
    next: u64,
}

impl<T: Item> Shelf<T> {
    pub(super) const fn new(limits: TailLimits) -> Self {
        Self(Mutex::new(Stock {
            limits,
            bytes: 0,
            order: BTreeMap::new(),
            next: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Stock<T>> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Adds what comes next to a tail, and lets go of what is too much for it. The newest item of a tail is let go of
    /// only for newer ones of other tails.
    pub(super) fn put(&self, tail: &Arc<Tail<T>>, item: T) {
        let cost = item.cost();
        // Always the shelf first and then a tail.
        let mut stock = self.lock();
        {
            let mut held = tail.lock();
            if held.state != State::Growing {
                return;
            }
            let ticket = stock.next;
            stock.next += 1;
            stock.bytes += cost;
            stock.order.insert(ticket, (cost, Arc::downgrade(tail)));
            held.bytes += cost;
            held.items.push_back((ticket, Arc::new(item)));
            while held.bytes > stock.limits.build && held.items.len() > 1 {
                let Some((ticket, cost)) = held.evict() else { break };
                stock.order.remove(&ticket);
                stock.bytes -= cost;
            }
        }
        while stock.bytes > stock.limits.total && stock.order.len() > 1 {
            let Some((_, (cost, oldest))) = stock.order.pop_first() else {
                break;
            };
            stock.bytes -= cost;
            if let Some(oldest) = oldest.upgrade() {
                oldest.lock().evict();
            }
        }
        drop(stock);
        tail.grown.send_replace(());
    }

    /// Forgets a tail that nobody reads any more.
    pub(super) fn remove(&self, tail: &Tail<T>) {
        let mut stock = self.lock();
        let mut held = tail.lock();
        // Whoever fills it may not have heard yet.
        held.state = State::Abandoned;
        while let Some((ticket, cost)) = held.evict() {
            stock.order.remove(&ticket);
            stock.bytes -= cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers `first..=last`.
    struct Numbers {
        first: i64,
        last: i64,
    }

    impl Item for Numbers {
        fn last(&self) -> i64 {
            self.last
        }

        fn cost(&self) -> usize {
            usize::try_from(self.last - self.first + 1).expect("positive")
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        /// A tail grows by so many numbers.
        Grow(usize, i64),
        /// A reader of a tail begins anywhere up to its head, in per cent.
        Join(usize, i64),
        /// A reader takes one step.
        Step(usize),
        /// A tail is left by its readers and begun anew where its sequence is.
        Leave(usize),
        End(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            5 => (0_usize..3, 1_i64..8).prop_map(|(tail, by)| Act::Grow(tail, by)),
            2 => (0_usize..3, 0_i64..=100).prop_map(|(tail, at)| Act::Join(tail, at)),
            9 => any::<usize>().prop_map(Act::Step),
            1 => (0_usize..3).prop_map(Act::Leave),
            1 => (0_usize..3).prop_map(Act::End),
        ]
    }

    struct Reader {
        tail: usize,
        after: i64,
        over: bool,
    }

    struct Model {
        shelf: Shelf<Numbers>,
        tails: [Arc<Tail<Numbers>>; 3],
        heads: [i64; 3],
        ended: [bool; 3],
        readers: Vec<Reader>,
    }

    impl Model {
        /// One step of a reader: from the tail, or where that holds no more what comes next, from what is stored. Fails
        /// where a number is skipped or comes twice, or an end comes too early.
        fn step(&mut self, reader: usize) -> Result<bool, TestCaseError> {
            let reader = &mut self.readers[reader];
            let head = self.heads[reader.tail];
            match self.tails[reader.tail].look(reader.after) {
                Look::Here(numbers) => {
                    prop_assert!(
                        numbers.first <= reader.after + 1,
                        "skipped: {} after {}",
                        numbers.first,
                        reader.after
                    );
                    prop_assert!(reader.after < numbers.last && numbers.last <= head);
                    reader.after = numbers.last;
                }
                // A page of two numbers.
                Look::Behind => {
                    prop_assert!(reader.after < head);
                    reader.after = head.min(reader.after + 2);
                }
                Look::CaughtUp => {
                    prop_assert!(reader.after >= head && !self.ended[reader.tail]);
                    return Ok(false);
                }
                Look::Over => {
                    prop_assert!(reader.after >= head && self.ended[reader.tail]);
                    reader.over = true;
                    return Ok(false);
                }
                Look::Abandoned => prop_assert!(false, "nobody left"),
            }
            Ok(true)
        }
    }

    proptest! {
        #[test]
        fn readers_get_every_number_once_and_in_order(
            acts in proptest::collection::vec(act(), 1..120), build in 1_usize..20, total in 1_usize..40,
        ) {
            let mut model = Model {
                shelf: Shelf::new(TailLimits { build, total }),
                tails: [0; 3].map(Tail::new),
                heads: [0; 3],
                ended: [false; 3],
                readers: Vec::new(),
            };
            for act in acts {
                match act {
                    Act::Grow(tail, by) if !model.ended[tail] => {
                        let first = model.heads[tail] + 1;
                        model.heads[tail] += by;
                        let numbers = Numbers { first, last: model.heads[tail] };
                        model.shelf.put(&model.tails[tail], numbers);
                    }
                    Act::Join(tail, at) => model.readers.push(Reader {
                        tail,
                        after: model.heads[tail] * at / 100,
                        over: false,
                    }),
                    Act::Step(reader) if !model.readers.is_empty() => {
                        let reader = reader % model.readers.len();
                        model.step(reader)?;
                    }
                    Act::Leave(tail) if !model.ended[tail] => {
                        model.shelf.remove(&model.tails[tail]);
                        model.tails[tail] = Tail::new(model.heads[tail]);
                    }
                    Act::End(tail) => {
                        model.ended[tail] = true;
                        model.tails[tail].end();
                    }
                    Act::Grow(..) | Act::Step(_) | Act::Leave(_) => {}
                }
                let held: Vec<usize> = model.tails.iter().map(|tail| tail.lock().bytes).collect();
                prop_assert_eq!(held.iter().sum::<usize>(), model.shelf.bytes());
                // One item may be larger than what is allowed.
                let items: Vec<usize> = model.tails.iter().map(|tail| tail.lock().items.len()).collect();
                prop_assert!(held.iter().zip(&items).all(|(held, items)| *held <= build || *items == 1));
                prop_assert!(model.shelf.bytes() <= total || items.iter().sum::<usize>() == 1);
            }
            for tail in 0..3 {
                model.ended[tail] = true;
                model.tails[tail].end();
            }
            for reader in 0..model.readers.len() {
                while model.step(reader)? {}
                prop_assert!(model.readers[reader].over);
            }
            for tail in &model.tails {
                model.shelf.remove(tail);
            }
            prop_assert_eq!(model.shelf.bytes(), 0);
        }
    }
}
