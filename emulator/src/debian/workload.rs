//! Workloads for the guest whose output is known beforehand: computed here by other means than
//! the guest's programs use.

use md5::{Digest, Md5};

use super::packages::hex;

/// Something for the guest to compute.
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The shell script.
    pub script: fn() -> String,
    /// What the script prints if the machine works, line by line.
    pub expected: fn() -> Vec<String>,
}

/// Every workload there is.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "sqlite",
        what: "a database of 20,000 rows in SQLite: inserts, updates, deletes, queries, a digest",
        script: sqlite_script,
        expected: sqlite_expected,
    },
    Workload {
        name: "text",
        what: "100,000 lines sorted, added up, compressed and unpacked by BusyBox",
        script: text_script,
        expected: text_expected,
    },
];

impl Workload {
    /// A workload by name.
    pub fn find(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// Compares what the guest printed; the first difference, if there is one.
    pub fn check(&self, output: &[String]) -> Result<(), String> {
        let expected = (self.expected)();
        for (index, line) in expected.iter().enumerate() {
            match output.get(index) {
                Some(found) if found == line => {}
                Some(found) => {
                    return Err(format!("line {}: `{found}` is not `{line}`", index + 1));
                }
                None => return Err(format!("line {} is missing: `{line}`", index + 1)),
            }
        }
        match output.get(expected.len()) {
            Some(extra) => Err(format!("an extra line: `{extra}`")),
            None => Ok(()),
        }
    }
}

const ROWS: i64 = 20_000;

fn sqlite_script() -> String {
    format!(
        "cat > work.sql <<'EOF'
CREATE TABLE account(
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL, branch INTEGER);
CREATE INDEX by_owner ON account(owner);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
INSERT INTO account
    SELECT i, printf('owner-%05d', i * 7919 % 20011), i * 104729 % 1000003, i % 97 FROM n;
SELECT 'inserted', count(*), sum(balance) FROM account;
UPDATE account SET balance = balance + id WHERE branch < 40;
SELECT 'updated', changes();
DELETE FROM account WHERE id % 5 = 0;
SELECT 'deleted', changes();
SELECT 'balances', min(balance), max(balance), sum(balance) FROM account;
SELECT 'branch', branch, count(*), sum(balance) FROM account
    WHERE branch % 10 = 3 GROUP BY branch ORDER BY branch;
SELECT 'neighbours', count(*) FROM account a JOIN account b ON b.id = a.id + 1
    WHERE a.balance < b.balance;
BEGIN; DELETE FROM account; ROLLBACK;
SELECT 'kept', count(*) FROM account;
PRAGMA integrity_check;
EOF
sqlite3 work.db < work.sql || exit 1
digest=$(sqlite3 work.db 'SELECT * FROM account ORDER BY owner, id;' | md5sum)
echo \"digest|${{digest%% *}}\"
"
    )
}

struct Account {
    id: i64,
    owner: String,
    balance: i64,
    branch: i64,
}

fn sqlite_expected() -> Vec<String> {
    let mut rows: Vec<Account> = (1..=ROWS)
        .map(|id| Account {
            id,
            owner: format!("owner-{:05}", id * 7919 % 20011),
            balance: id * 104_729 % 1_000_003,
            branch: id % 97,
        })
        .collect();
    let sum = |rows: &[Account]| rows.iter().map(|row| row.balance).sum::<i64>();
    let mut lines = vec![format!("inserted|{}|{}", rows.len(), sum(&rows))];
    let mut updated = 0;
    for row in rows.iter_mut().filter(|row| row.branch < 40) {
        row.balance += row.id;
        updated += 1;
    }
    lines.push(format!("updated|{updated}"));
    rows.retain(|row| row.id % 5 != 0);
    lines.push(format!("deleted|{}", ROWS as usize - rows.len()));
    let balances = || rows.iter().map(|row| row.balance);
    lines.push(format!(
        "balances|{}|{}|{}",
        balances().min().unwrap_or(0),
        balances().max().unwrap_or(0),
        sum(&rows)
    ));
    for branch in (3..97).step_by(10) {
        let of_branch = rows.iter().filter(|row| row.branch == branch);
        let total: i64 = of_branch.clone().map(|row| row.balance).sum();
        lines.push(format!("branch|{branch}|{}|{total}", of_branch.count()));
    }
    let pairs = rows.windows(2);
    let neighbours =
        pairs.filter(|pair| pair[1].id == pair[0].id + 1 && pair[0].balance < pair[1].balance);
    lines.push(format!("neighbours|{}", neighbours.count()));
    lines.push(format!("kept|{}", rows.len()));
    lines.push("ok".to_string());
    rows.sort_by(|a, b| (&a.owner, a.id).cmp(&(&b.owner, b.id)));
    let mut digest = Md5::new();
    for row in &rows {
        let line = format!("{}|{}|{}|{}\n", row.id, row.owner, row.balance, row.branch);
        digest.update(line.as_bytes());
    }
    lines.push(format!("digest|{}", hex(&digest.finalize())));
    lines
}

const LINES: u64 = 100_000;

fn text_script() -> String {
    format!(
        "seq 1 {LINES} | awk '{{ sum += $1 }} END {{ printf \"sum %.0f\\n\", sum }}'
digest=$(seq 1 {LINES} | sort -r | gzip | gunzip | md5sum)
echo \"digest ${{digest%% *}}\"
"
    )
}

fn text_expected() -> Vec<String> {
    let mut lines: Vec<String> = (1..=LINES).map(|line| line.to_string()).collect();
    lines.sort_by(|a, b| b.cmp(a));
    let mut digest = Md5::new();
    for line in &lines {
        digest.update(line.as_bytes());
        digest.update(b"\n");
    }
    vec![
        format!("sum {}", LINES * (LINES + 1) / 2),
        format!("digest {}", hex(&digest.finalize())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_found_wherever_it_is() {
        let workload = Workload::find("sqlite").unwrap();
        let right = (workload.expected)();
        assert_eq!(workload.check(&right), Ok(()));
        for index in 0..right.len() {
            let mut wrong = right.clone();
            wrong[index].push('0');
            assert!(workload.check(&wrong).is_err());
            wrong.truncate(index);
            assert!(workload.check(&wrong).is_err());
        }
        let mut long = right;
        long.push("more".into());
        assert!(workload.check(&long).is_err());
    }
}
