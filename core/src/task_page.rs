//! A page of tasks, as it is answered and cached: in one place, since what is made in advance must be what a reader
//! would have made.

use serde::Serialize;

use crate::Task;

/// Items of a page, if the caller names no number, and at most.
pub const SIZE: u32 = 20;
pub const SIZE_MAX: u32 = 100;
/// Items that can be reached by pages. Who wants more asks more narrowly.
pub const REACH: u32 = 10_000;

/// Which page; they count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    pub page: u32,
    pub size: u32,
}

/// The first page of the usual size.
pub const FIRST: Paging = Paging { page: 1, size: SIZE };

#[derive(Serialize)]
struct Page<'t> {
    items: &'t [Task],
    page: u32,
    pagesize: u32,
    /// The number of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
}

impl Paging {
    pub fn offset(self) -> i64 {
        i64::from((self.page - 1) * self.size)
    }

    /// Rows to be read: one more than a page has tells whether there is a next one.
    pub fn limit(self) -> i64 {
        i64::from(self.size) + 1
    }

    /// The size, where it is not the usual one.
    pub fn unusual_size(self) -> Option<u32> {
        (self.size != SIZE).then_some(self.size)
    }

    /// The answer, from the rows that were read.
    pub fn body(self, found: &[Task]) -> Vec<u8> {
        let more = found.len() > self.size as usize && (self.page + 1) * self.size <= REACH;
        let items = &found[..found.len().min(self.size as usize)];
        let page = Page { items, page: self.page, pagesize: self.size, next: more.then_some(self.page + 1) };
        serde_json::to_vec(&page).unwrap_or_default()
    }
}
