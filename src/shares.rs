//! Sharing a budget of bytes fairly among tenants. A tenant is an AppProject of Argo CD.
//!
//! An item, such as a repository's record, is charged in full to every tenant that used it within a day of its last use. When the sum of all
//! items exceeds the budget, the tenant with the largest charge lets go of the item that it has not used for the longest time. An item is
//! evicted when no tenant holds it any more. So a tenant that holds less than an equal share of the budget loses nothing, whatever the
//! others do.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

/// How long a use counts after a later one by another tenant.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Bytes that an item costs beside its own: keys, and the bookkeeping for its holders.
const OVERHEAD: u64 = 256;

/// Which tenant holds which items, and how many bytes they have.
#[derive(Debug)]
pub struct Shares<K> {
    items: HashMap<K, Item>,
    tenants: HashMap<Arc<str>, Tenant<K>>,
    total: u64,
    /// Numbers uses in their order, so that no two are equal.
    uses: u64,
}

#[derive(Debug, Default)]
struct Item {
    bytes: u64,
    holders: Vec<Holder>,
}

#[derive(Debug)]
struct Holder {
    tenant: Arc<str>,
    last_use: u64,
    at: Timestamp,
}

#[derive(Debug)]
struct Tenant<K> {
    charge: u64,
    /// Items by their last use by this tenant.
    by_use: BTreeMap<u64, K>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { items: HashMap::new(), tenants: HashMap::new(), total: 0, uses: 0 }
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Notes that a tenant uses an item. A new item has no bytes yet but the overhead: see [`Shares::weigh`].
    pub fn hold(&mut self, key: &K, tenant: &str, at: Timestamp) {
        self.uses += 1;
        let last_use = self.uses;
        if !self.items.contains_key(key) {
            self.items.insert(key.clone(), Item { bytes: OVERHEAD, holders: Vec::new() });
            self.total += OVERHEAD;
        }
        let item = self.items.get_mut(key).expect("it was inserted");
        let bytes = item.bytes;
        let (mut gone, mut is_held) = (Vec::new(), false);
        item.holders.retain_mut(|holder| {
            if &*holder.tenant == tenant {
                let before = std::mem::replace(&mut holder.last_use, last_use);
                holder.at = at;
                is_held = true;
                let own = self.tenants.get_mut(tenant).expect("a holder is a tenant");
                own.by_use.remove(&before);
                own.by_use.insert(last_use, key.clone());
                return true;
            }
            let is_recent = at.duration_since(holder.at).unsigned_abs() < DAY;
            if !is_recent {
                gone.push((Arc::clone(&holder.tenant), holder.last_use));
            }
            is_recent
        });
        if !is_held {
            let name: Arc<str> = match self.tenants.get_key_value(tenant) {
                Some((name, _)) => Arc::clone(name),
                None => tenant.into(),
            };
            item.holders.push(Holder { tenant: Arc::clone(&name), last_use, at });
            let own = self.tenants.entry(name).or_insert_with(|| Tenant { charge: 0, by_use: BTreeMap::new() });
            own.charge += bytes;
            own.by_use.insert(last_use, key.clone());
        }
        gone.into_iter().for_each(|(tenant, last_use)| self.discharge(&tenant, last_use, bytes));
    }

    /// Sets how many bytes an item has. Does nothing if no tenant holds it.
    pub fn weigh(&mut self, key: &K, bytes: u64) {
        let Some(item) = self.items.get_mut(key) else { return };
        let new = bytes.saturating_add(OVERHEAD);
        let old = std::mem::replace(&mut item.bytes, new);
        self.total = self.total - old + new;
        for holder in &item.holders {
            let tenant = self.tenants.get_mut(&holder.tenant).expect("a holder is a tenant");
            tenant.charge = tenant.charge - old + new;
        }
    }

    /// Evicts items until the rest fits into the budget. Returns their keys.
    pub fn shrink(&mut self, budget: u64) -> Vec<K> {
        let mut evicted = Vec::new();
        while self.total > budget {
            // Of equal charges one is taken by name, so that the outcome is always the same.
            let largest = self.tenants.iter().max_by_key(|(name, tenant)| (tenant.charge, Arc::clone(name)));
            let Some(name) = largest.map(|(name, _)| Arc::clone(name)) else { break };
            let Some((&last_use, key)) = self.tenants[&name].by_use.iter().next() else { break };
            let key = key.clone();
            let item = self.items.get_mut(&key).expect("a tenant holds items only");
            let bytes = item.bytes;
            item.holders.retain(|holder| holder.tenant != name);
            let is_free = item.holders.is_empty();
            self.discharge(&name, last_use, bytes);
            if is_free {
                self.items.remove(&key);
                self.total -= bytes;
                evicted.push(key);
            }
        }
        evicted
    }

    /// Bytes of all items, each once, with the overhead.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn discharge(&mut self, tenant: &Arc<str>, last_use: u64, bytes: u64) {
        let own = self.tenants.get_mut(tenant).expect("a holder is a tenant");
        own.charge -= bytes;
        own.by_use.remove(&last_use);
        if own.by_use.is_empty() {
            self.tenants.remove(tenant);
        }
    }
}

/// Values by key in memory, bounded in bytes and shared by tenants as [`Shares`] says.
#[derive(Debug)]
pub struct SharedCache<K, V> {
    budget: u64,
    inner: Mutex<Inner<K, V>>,
    /// For the metrics: bytes of all values.
    gauge: Gauge,
}

#[derive(Debug)]
struct Inner<K, V> {
    values: HashMap<K, V>,
    shares: Shares<K>,
}

impl<K: Clone + Eq + Hash, V: Clone> SharedCache<K, V> {
    /// An empty cache for so many bytes.
    pub fn new(budget: u64) -> Self {
        Self { budget, inner: Mutex::new(Inner { values: HashMap::new(), shares: Shares::default() }), gauge: Gauge::default() }
    }

    /// The value of a key, which the tenant uses now.
    pub fn get(&self, key: &K, tenant: &str, now: Timestamp) -> Option<V> {
        let mut inner = self.lock();
        let value = inner.values.get(key).cloned()?;
        inner.shares.hold(key, tenant, now);
        Some(value)
    }

    /// The value of a key, or the one that `make` makes, of which the bytes are known later.
    pub fn get_or_insert(&self, key: &K, tenant: &str, now: Timestamp, make: impl FnOnce() -> V) -> V {
        let mut inner = self.lock();
        inner.shares.hold(key, tenant, now);
        inner.values.entry(key.clone()).or_insert_with(make).clone()
    }

    /// Keeps a value of so many bytes, and evicts what the budget has no room for: perhaps this one.
    pub fn insert(&self, key: K, tenant: &str, now: Timestamp, value: V, bytes: u64) {
        let mut inner = self.lock();
        inner.shares.hold(&key, tenant, now);
        inner.values.insert(key.clone(), value);
        self.weighed(&mut inner, &key, bytes);
    }

    /// Tells how many bytes a value has now.
    pub fn weigh(&self, key: &K, bytes: u64) {
        self.weighed(&mut self.lock(), key, bytes);
    }

    fn weighed(&self, inner: &mut Inner<K, V>, key: &K, bytes: u64) {
        inner.shares.weigh(key, bytes);
        for evicted in inner.shares.shrink(self.budget) {
            inner.values.remove(&evicted);
        }
        self.gauge.set(i64::try_from(inner.shares.total()).unwrap_or(i64::MAX));
    }

    /// What the metrics show of it.
    pub fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.lock().shares.total()
    }

    /// Calls `see` with all keys and values, in no order.
    pub fn each(&self, mut see: impl FnMut(&K, &V)) {
        self.lock().values.iter().for_each(|(key, value)| see(key, value));
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn put(shares: &mut Shares<String>, tenant: &str, key: &str, bytes: u64) {
        shares.hold(&key.to_owned(), tenant, at(0));
        shares.weigh(&key.to_owned(), bytes - OVERHEAD);
    }

    #[test]
    fn the_largest_tenant_lets_go_of_what_it_used_longest_ago() {
        let mut shares = Shares::default();
        put(&mut shares, "honest", "h1", 1000);
        (0..9).for_each(|number| put(&mut shares, "greedy", &format!("g{number}"), 1000));
        shares.hold(&"g0".to_owned(), "greedy", at(1));
        assert_eq!(shares.total(), 10_000);
        assert_eq!(shares.shrink(7000), ["g1", "g2", "g3"]);
        assert_eq!(shares.shrink(0).len(), 7, "down to nothing");
        assert_eq!(shares.total(), 0);
        assert!(shares.tenants.is_empty() && shares.items.is_empty());
    }

    #[test]
    fn a_tenant_alone_may_use_all() {
        let mut shares = Shares::default();
        (0..10).for_each(|number| put(&mut shares, "only", &format!("{number}"), 1000));
        assert!(shares.shrink(10_000).is_empty());
        assert_eq!(shares.shrink(9999), ["0"]);
    }

    #[test]
    fn what_another_tenant_holds_stays() {
        let mut shares = Shares::default();
        put(&mut shares, "honest", "shared", 1000);
        put(&mut shares, "greedy", "shared", 1000);
        (0..9).for_each(|number| put(&mut shares, "greedy", &format!("g{number}"), 1000));
        assert_eq!(shares.total(), 10_000);
        // Its oldest is the shared one, which stays for the other tenant.
        assert_eq!(shares.shrink(9000), ["g0"]);
        assert!(shares.items.contains_key("shared"));
    }

    #[test]
    fn a_use_of_yesterday_is_not_charged_when_another_tenant_uses_it_today() {
        let mut shares = Shares::default();
        put(&mut shares, "old", "a", 1000);
        let day = i64::try_from(DAY.as_secs()).expect("small");
        shares.hold(&"a".to_owned(), "new", at(day - 1));
        assert_eq!((shares.tenants["old"].charge, shares.tenants["new"].charge), (1000, 1000));
        shares.hold(&"a".to_owned(), "new", at(day));
        assert!(!shares.tenants.contains_key("old"));
        assert_eq!(shares.total(), 1000);
    }

    #[test]
    fn an_item_that_grows_is_charged_to_all_its_holders() {
        let mut shares = Shares::default();
        put(&mut shares, "a", "x", 1000);
        put(&mut shares, "b", "x", 1000);
        shares.weigh(&"x".to_owned(), 5000 - OVERHEAD);
        assert_eq!((shares.total(), shares.tenants["a"].charge, shares.tenants["b"].charge), (5000, 5000, 5000));
    }

    #[test]
    fn a_cache_never_exceeds_its_budget() {
        let cache = SharedCache::new(10_000);
        for number in 0..100_u64 {
            let tenant = format!("t{}", number % 7);
            cache.insert(number, &tenant, at(0), (), number * 37 % 3000);
            assert!(cache.bytes() <= 10_000);
        }
        cache.insert(1000, "t", at(0), (), 20_000);
        assert!(cache.bytes() <= 10_000 && cache.get(&1000, "t", at(0)).is_none(), "one that is too large is not kept");
    }
}
