//! What one tenant may have under way at registries, and all tenants together. A tenant is an AppProject of Argo CD.
//!
//! Answers that are under way take memory before anything can be charged for them. Small ones (see [`Limits::small`]) are bounded by their
//! number. A large one needs a place, of which there are few; a tenant has less than all of them, so that slow and huge repositories of one
//! tenant keep no other from asking.
//!
//! [`Limits::small`]: super::Limits::small

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that all tenants have under way, beside the first ones of each.
const REQUESTS: usize = 256;

/// Requests that one tenant has under way, beside its first ones.
const REQUESTS_EACH: usize = 28;

/// Requests of a tenant that wait for no other tenant's.
const FIRST_REQUESTS: usize = 4;

/// Questions about large repositories that all tenants have under way.
const LARGE: usize = 3;

/// Questions about large repositories that one tenant has under way.
const LARGE_EACH: usize = 2;

/// Choices from large listings that are recalled at a time.
const RECALLS: usize = 4;

/// All tenants.
#[derive(Debug)]
pub struct Tenants {
    known: Mutex<HashMap<Arc<str>, Weak<Tenant>>>,
    requests: Arc<Semaphore>,
    large: Arc<Semaphore>,
    recalls: Arc<Semaphore>,
}

/// One tenant, as long as anybody asks for it.
#[derive(Debug)]
pub struct Tenant {
    pub name: Arc<str>,
    requests: Places,
    large: Places,
    recalls: Places,
}

#[derive(Debug)]
struct Places {
    first: Arc<Semaphore>,
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place that was taken, until this is dropped.
#[derive(Debug)]
pub struct Place {
    _all: Option<OwnedSemaphorePermit>,
    _own: OwnedSemaphorePermit,
}

impl Default for Tenants {
    fn default() -> Self {
        let all = |places| Arc::new(Semaphore::new(places));
        Self { known: Mutex::default(), requests: all(REQUESTS), large: all(LARGE), recalls: all(RECALLS) }
    }
}

impl Tenants {
    /// The tenant of this name.
    pub fn get(&self, name: &str) -> Arc<Tenant> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.get(name).and_then(Weak::upgrade) {
            return tenant;
        }
        known.retain(|_, tenant| tenant.strong_count() > 0);
        let places = |first, own, all: &Arc<Semaphore>| Places {
            first: Arc::new(Semaphore::new(first)),
            own: Arc::new(Semaphore::new(own)),
            all: Arc::clone(all),
        };
        let name: Arc<str> = name.into();
        let tenant = Arc::new(Tenant {
            name: Arc::clone(&name),
            requests: places(FIRST_REQUESTS, REQUESTS_EACH, &self.requests),
            large: places(0, LARGE_EACH, &self.large),
            recalls: places(0, 1, &self.recalls),
        });
        known.insert(name, Arc::downgrade(&tenant));
        tenant
    }
}

impl Tenant {
    /// Waits for a place for one small answer.
    pub async fn request(&self) -> Place {
        self.requests.take().await
    }

    /// Waits for a place for a question about a large repository.
    pub async fn large(&self) -> Place {
        self.large.take().await
    }
}

impl Tenant {
    /// Waits for a place for a choice from a large listing that is recalled. It asks nobody, so that it is given back soon.
    pub async fn recall(&self) -> Place {
        self.recalls.take().await
    }
}

impl Places {
    async fn take(&self) -> Place {
        let acquire =
            async |places: &Arc<Semaphore>| Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
        let further = async {
            // First its own: a tenant that waits for others' places holds none of them.
            let own = acquire(&self.own).await;
            let all = acquire(&self.all).await;
            Place { _all: Some(all), _own: own }
        };
        tokio::select! {
            biased;
            first = acquire(&self.first) => Place { _all: None, _own: first },
            further = further => further,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_tenant_leaves_places_for_the_others() {
        let tenants = Tenants::default();
        let greedy = tenants.get("greedy");
        let mut held = Vec::new();
        while let Some(place) = greedy.large().now_or_never() {
            held.push(place);
        }
        assert_eq!(held.len(), LARGE_EACH);
        let honest = tenants.get("honest").large().now_or_never();
        assert!(honest.is_some());
        drop(held.pop());
        let mut requests = Vec::new();
        for number in 0..20 {
            let greedy = tenants.get(&format!("greedy {number}"));
            while let Some(place) = greedy.request().now_or_never() {
                requests.push((Arc::clone(&greedy), place));
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(requests.len(), REQUESTS + 20 * FIRST_REQUESTS);
        assert!(tenants.get("honest").request().now_or_never().is_some(), "its first ones wait for nobody");
        assert!(greedy.large().now_or_never().is_some(), "a place that is given back is free");
    }

    #[test]
    fn tenants_that_nobody_asks_for_are_forgotten() {
        let tenants = Tenants::default();
        let kept = tenants.get("kept");
        (0..1000).for_each(|number| drop(tenants.get(&number.to_string())));
        assert!(tenants.known.lock().expect("no panic").len() <= 2);
        assert!(Arc::ptr_eq(&kept, &tenants.get("kept")));
    }
}
