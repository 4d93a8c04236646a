//! The leases of attachments, and who is at work on each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;

use crate::dhcp::store::Record;
use crate::spec::Attachment;

/// The lease of an attachment, or the place for it.
#[derive(Debug, Default)]
pub struct Held {
    pub(super) record: RefCell<Option<Record>>,
    pub(super) keeper: RefCell<Option<JoinHandle<()>>>,
    /// Held by the call that gets it or gives it back.
    pub(super) turn: Mutex<()>,
    /// Tells a call that gets it that it is not wanted any more.
    pub(super) unwanted: Notify,
    /// How many calls have got it.
    pub(super) times_got: Cell<u64>,
}

impl Held {
    /// The lease, if there is one.
    pub fn record(&self) -> Option<Record> {
        self.record.borrow().clone()
    }

    pub(super) fn stop(&self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }
}

/// The places of all attachments.
#[derive(Debug, Default)]
pub(super) struct Places(RefCell<BTreeMap<Attachment, Rc<Held>>>);

impl Places {
    /// The place of an attachment, which is made if it is not there.
    pub(super) fn place(&self, attachment: &Attachment) -> Rc<Held> {
        Rc::clone(self.0.borrow_mut().entry(attachment.clone()).or_default())
    }

    /// The place of an attachment that has one.
    pub(super) fn find(&self, attachment: &Attachment) -> Option<Rc<Held>> {
        self.0.borrow().get(attachment).cloned()
    }

    /// Does something with the place of an attachment when it is this call's turn.
    pub(super) async fn in_turn<T>(
        &self,
        attachment: &Attachment,
        work: impl AsyncFnOnce(&Rc<Held>) -> T,
    ) -> T {
        loop {
            let held = self.place(attachment);
            let _turn = held.turn.lock().await;
            // Where a lease has ended meanwhile, its place is gone: what is put there, nobody finds.
            if self.find(attachment).is_some_and(|it| Rc::ptr_eq(&it, &held)) {
                return work(&held).await;
            }
        }
    }

    /// Forgets a place that has no lease, unless it is somebody's turn.
    pub(super) fn tidy(&self, attachment: &Attachment) {
        let is_idle = |held: &Rc<Held>| held.record.borrow().is_none() && held.turn.try_lock().is_ok();
        if self.find(attachment).as_ref().is_some_and(is_idle) {
            self.remove(attachment);
        }
    }

    /// Forgets the place of an attachment.
    pub(super) fn remove(&self, attachment: &Attachment) {
        self.0.borrow_mut().remove(attachment);
    }

    /// The attachments to a network that have a lease.
    pub(super) fn of_network(&self, network: &str) -> Vec<Attachment> {
        let all = self.0.borrow();
        let found = all.iter().filter(|(it, held)| it.network == network && held.record.borrow().is_some());
        found.map(|(it, _)| it.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    fn attachment() -> Attachment {
        Attachment { network: "net".into(), container_id: "pod".into(), ifname: "eth0".into() }
    }

    fn in_one_thread<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, work)
    }

    #[test]
    fn who_has_waited_while_a_lease_ended_gets_a_place_that_others_find() {
        let is_found = in_one_thread(async {
            let (places, of) = (Rc::new(Places::default()), attachment());
            let ending = places.place(&of);
            let turn = ending.turn.lock().await;
            let waiter = Rc::clone(&places);
            let waiting = spawn_local(async move {
                let is_current = async |held: &Rc<Held>| {
                    waiter.find(&attachment()).is_some_and(|it| Rc::ptr_eq(&it, held))
                };
                waiter.in_turn(&attachment(), is_current).await
            });
            yield_now().await;
            places.remove(&of);
            drop(turn);
            waiting.await.unwrap()
        });
        assert!(is_found);
    }

    #[test]
    fn a_place_is_forgotten_when_nobody_is_at_work_on_it() {
        in_one_thread(async {
            let (places, of) = (Places::default(), attachment());
            let is_there = places
                .in_turn(&of, async |_| {
                    places.tidy(&of);
                    places.find(&of).is_some()
                })
                .await;
            places.tidy(&of);
            assert!(is_there && places.find(&of).is_none());
        });
    }
}
