//! Making room in the store: the tenant that holds most gives first.

use std::collections::BTreeMap;

use rusqlite::TransactionBehavior;

use super::StoreError;
use super::database::Database;
use super::rows::time;
use crate::shares::Shares;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stored {
    Repository(i64),
    Pin(String, String),
}

impl Database {
    /// Evicts rows until at most so many bytes are used. The tenant with the largest charge gives first, see [`Shares`]: the records of
    /// repositories are taken before pins, since a registry can give them again.
    pub fn evict(&mut self, most_bytes: u64) -> Result<(), StoreError> {
        let used = self.used_bytes()?;
        if used <= most_bytes {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut shares = Shares::default();
        {
            let mut weights: BTreeMap<i64, u64> = BTreeMap::new();
            let mut statement = transaction.prepare("SELECT r.id, a.tenant, a.at, r.bytes FROM repositories r LEFT JOIN askers a ON a.repository = r.id ORDER BY a.at")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let tenant: Option<String> = row.get(1)?;
                let at: Option<i64> = row.get(2)?;
                shares.hold(
                    &Stored::Repository(id),
                    tenant.as_deref().unwrap_or_default(),
                    at.and_then(time).unwrap_or_default(),
                );
                weights.insert(id, u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
            }
            weights.into_iter().for_each(|(id, bytes)| shares.weigh(&Stored::Repository(id), bytes));
            let repositories = shares.total();
            let mut statement = transaction
                .prepare("SELECT key, tenant, at, length(key) + length(tenant) + length(choice) FROM pins ORDER BY at")?;
            let mut rows = statement.query([])?;
            let mut pins = Shares::default();
            while let Some(row) = rows.next()? {
                let (key, tenant): (String, String) = (row.get(0)?, row.get(1)?);
                let pin = Stored::Pin(key, tenant.clone());
                pins.hold(&pin, &tenant, time(row.get(2)?).unwrap_or_default());
                pins.weigh(&pin, u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
            }
            // Rows are counted, pages are used: the one in proportion to the other. Records may take what pins leave of it.
            let all = repositories + pins.total();
            let most = u64::try_from(u128::from(all) * u128::from(most_bytes) / u128::from(used.max(1))).unwrap_or(u64::MAX);
            let evicted = pins.shrink(most / 2).into_iter().chain(shares.shrink(most.saturating_sub(pins.total())));
            let evicted: Vec<Stored> = evicted.collect();
            tracing::info!(
                rows = evicted.len(),
                used,
                most_bytes,
                "the store is full: what the largest tenants used longest ago is removed"
            );
            for row in evicted {
                match row {
                    Stored::Repository(id) => {
                        transaction.prepare_cached("DELETE FROM repositories WHERE id = ?1")?.execute([id])?;
                    }
                    Stored::Pin(key, tenant) => {
                        transaction.prepare_cached("DELETE FROM pins WHERE key = ?1 AND tenant = ?2")?.execute([key, tenant])?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}
