//! KV pages: who holds them, and what each sequence may still claim.
//!
//! A page is free, or held by one or more holders (sequences, pins). Admission reserves every page
//! that a sequence can come to need, so that a running sequence never fails for lack of memory and
//! nothing is evicted. Rejected: optimistic allocation with preemption. KV of mixed provenance
//! cannot be rebuilt by a prefill, so a preempted sequence would have to be swapped out.

use std::collections::BTreeSet;

use crate::executor::{PageCopy, Weights};

/// Number of a KV page in the executor's memory, below [`crate::Limits::pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// All pages of an executor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pool {
    /// Ordered, so that equal histories give equal states.
    free: BTreeSet<PageId>,
    /// Holders of each page.
    holders: Vec<u32>,
    /// Free pages that are promised to somebody.
    reserved: u32,
}

impl Pool {
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            free: (0..pages).map(PageId).collect(),
            holders: vec![0; pages as usize],
            reserved: 0,
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.holders.len() as u32
    }

    pub(crate) fn used(&self) -> u32 {
        self.total() - self.free.len() as u32
    }

    /// Free pages that nobody was promised.
    pub(crate) fn available(&self) -> u32 {
        self.free.len() as u32 - self.reserved
    }

    /// Promises `pages` free pages, or nothing.
    pub(crate) fn reserve(&mut self, pages: u32) -> bool {
        let fits = pages <= self.available();
        if fits {
            self.reserved += pages;
        }
        fits
    }

    fn cancel_reservation(&mut self, pages: u32) {
        self.reserved -= pages;
    }

    /// Turns one reserved page into a held one.
    fn claim(&mut self) -> PageId {
        let page = self.free.pop_first().expect("a reservation is backed by a free page");
        self.reserved -= 1;
        self.holders[page.0 as usize] = 1;
        page
    }

    fn hold(&mut self, page: PageId) {
        self.holders[page.0 as usize] += 1;
    }

    /// Lets go of a page; true if that freed it.
    fn release(&mut self, page: PageId) -> bool {
        let holders = &mut self.holders[page.0 as usize];
        *holders -= 1;
        let freed = *holders == 0;
        if freed {
            self.free.insert(page);
        }
        freed
    }

    pub(crate) fn is_shared(&self, page: PageId) -> bool {
        self.holders[page.0 as usize] > 1
    }

    /// Whether nobody holds or awaits a page.
    pub(crate) fn is_pristine(&self) -> bool {
        self.free.len() == self.holders.len()
            && self.reserved == 0
            && self.holders.iter().all(|&holders| holders == 0)
    }
}

/// Pages held from outside a sequence, as a prefix cache would. Give them back to
/// [`crate::Core::unpin`]; the sequence copies a page before it overwrites it.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
#[must_use = "pages stay in use until the pin is given back"]
pub struct Pin {
    pages: Vec<PageId>,
}

impl Pin {
    /// The pages, in order of position.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    pub(crate) fn release(self, pool: &mut Pool) {
        for page in self.pages {
            pool.release(page);
        }
    }
}

/// KV entries of one sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kv {
    page_tokens: u32,
    pages: Vec<PageId>,
    /// Which weights wrote each entry; its length is the KV length.
    provenance: Vec<Weights>,
    /// Pages that this sequence may still claim.
    reserved: u32,
}

impl Kv {
    /// An empty span with a promise of `pages`, which the caller has reserved in the pool.
    pub(crate) fn new(page_tokens: u32, pages: u32) -> Self {
        Self { page_tokens, pages: Vec::new(), provenance: Vec::new(), reserved: pages }
    }

    /// Entries, in tokens.
    pub(crate) fn len(&self) -> u32 {
        self.provenance.len() as u32
    }

    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    pub(crate) fn provenance(&self) -> &[Weights] {
        &self.provenance
    }

    /// Makes the page of `position` exist and be this sequence's alone.
    pub(crate) fn make_writable(
        &mut self,
        position: u32,
        pool: &mut Pool,
        copies: &mut Vec<PageCopy>,
    ) {
        let index = (position / self.page_tokens) as usize;
        while self.pages.len() <= index {
            self.reserved -= 1;
            self.pages.push(pool.claim());
        }
        let from = self.pages[index];
        if pool.is_shared(from) {
            self.reserved -= 1;
            let to = pool.claim();
            pool.release(from);
            self.pages[index] = to;
            copies.push(PageCopy { from, to });
        }
    }

    /// Notes that `weights` wrote the entry at `position`, which is at most the length.
    pub(crate) fn wrote(&mut self, position: u32, weights: Weights) {
        match self.provenance.get_mut(position as usize) {
            Some(entry) => *entry = weights,
            None => self.provenance.push(weights),
        }
    }

    /// Drops every entry at or after `len`, and exactly the pages that hold no other.
    pub(crate) fn truncate(&mut self, len: u32, pool: &mut Pool) {
        self.provenance.truncate(len as usize);
        let keep = len.div_ceil(self.page_tokens) as usize;
        while self.pages.len() > keep {
            let Some(page) = self.pages.pop() else { break };
            // A page that stays with another holder was doubled in the reservation when pinned.
            if pool.release(page) {
                pool.reserved += 1;
                self.reserved += 1;
            }
        }
    }

    /// The nearest `most` positions before `position` that the draft wrote, ascending.
    pub(crate) fn drafts_before(&self, position: u32, most: u32) -> Vec<u32> {
        let mut found: Vec<u32> = (0..position.min(self.len()))
            .rev()
            .filter(|&p| self.provenance[p as usize] == Weights::Draft)
            .take(most as usize)
            .collect();
        found.reverse();
        found
    }

    /// Shares every page with an outside holder, if a copy of each can be promised.
    pub(crate) fn pin(&mut self, pool: &mut Pool) -> Option<Pin> {
        let pages = self.pages.len() as u32;
        if !pool.reserve(pages) {
            return None;
        }
        self.reserved += pages;
        for &page in &self.pages {
            pool.hold(page);
        }
        Some(Pin { pages: self.pages.clone() })
    }

    /// Lets go of all pages and of the promise.
    pub(crate) fn release(self, pool: &mut Pool) {
        pool.cancel_reservation(self.reserved);
        for page in self.pages {
            pool.release(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(pool: &mut Pool, pages: u32) -> Kv {
        assert!(pool.reserve(pages));
        Kv::new(2, pages)
    }

    fn fill(kv: &mut Kv, pool: &mut Pool, upto: u32, weights: Weights) -> Vec<PageCopy> {
        let mut copies = Vec::new();
        for position in kv.len()..upto {
            kv.make_writable(position, pool, &mut copies);
            kv.wrote(position, weights);
        }
        copies
    }

    #[test]
    fn a_reservation_is_never_oversold() {
        let mut pool = Pool::new(3);
        let kv = span(&mut pool, 2);
        assert!(!pool.reserve(2));
        assert!(pool.reserve(1));
        pool.cancel_reservation(1);
        kv.release(&mut pool);
        assert!(pool.is_pristine());
    }

    #[test]
    fn truncation_frees_exactly_the_pages_past_the_cut() {
        let mut pool = Pool::new(4);
        let mut kv = span(&mut pool, 4);
        fill(&mut kv, &mut pool, 7, Weights::Draft);
        assert_eq!(pool.used(), 4);
        kv.truncate(3, &mut pool);
        assert_eq!((kv.len(), pool.used()), (3, 2));
        kv.truncate(2, &mut pool);
        assert_eq!((kv.len(), pool.used()), (2, 1));
        // What was cut can be claimed again.
        fill(&mut kv, &mut pool, 8, Weights::Full);
        assert_eq!(pool.used(), 4);
        kv.release(&mut pool);
        assert!(pool.is_pristine());
    }

    #[test]
    fn a_pinned_page_is_copied_before_it_is_overwritten() {
        let mut pool = Pool::new(4);
        let mut kv = span(&mut pool, 2);
        fill(&mut kv, &mut pool, 3, Weights::Draft);
        let pin = kv.pin(&mut pool).expect("two pages are left to promise");
        let mut copies = Vec::new();
        kv.make_writable(2, &mut pool, &mut copies);
        assert_eq!(copies.len(), 1);
        assert_eq!(copies[0].from, pin.pages()[1]);
        assert_eq!(kv.pages()[1], copies[0].to);
        // The second write finds the page its own.
        kv.make_writable(2, &mut pool, &mut copies);
        assert_eq!(copies.len(), 1);
        kv.release(&mut pool);
        assert!(!pool.is_pristine());
        pin.release(&mut pool);
        assert!(pool.is_pristine());
    }

    #[test]
    fn a_pin_that_could_not_be_copied_is_refused() {
        let mut pool = Pool::new(3);
        let mut kv = span(&mut pool, 2);
        fill(&mut kv, &mut pool, 3, Weights::Draft);
        assert_eq!(kv.pin(&mut pool), None);
        kv.release(&mut pool);
        assert!(pool.is_pristine());
    }

    #[test]
    fn refresh_takes_the_nearest_draft_entries() {
        let mut pool = Pool::new(4);
        let mut kv = span(&mut pool, 4);
        fill(&mut kv, &mut pool, 2, Weights::Full);
        fill(&mut kv, &mut pool, 6, Weights::Draft);
        kv.wrote(4, Weights::Full);
        assert_eq!(kv.drafts_before(6, 2), [3, 5]);
        assert_eq!(kv.drafts_before(6, 9), [2, 3, 5]);
        assert_eq!(kv.drafts_before(5, 0), [0u32; 0]);
        kv.release(&mut pool);
    }
}
