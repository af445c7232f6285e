//! Workloads for the guest whose output is known beforehand: computed here by other means than
//! the guest's programs use, or by the same programs on the host processor.

use std::io;
use std::path::Path;

use md5::{Digest, Md5};

use super::archive::Tree;
use super::initramfs::Task;
use super::packages::hex;
use super::prepare::Recipe;
use super::reference;

/// Something for the guest to compute.
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Packages that it needs.
    pub packages: &'static [&'static str],
    /// Files that it needs, in the guest's folder work.
    pub files: &'static [(&'static str, &'static str)],
    /// The shell script. `${RUN}` stands before the names of programs from packages, `$ROOT`
    /// before absolute paths.
    pub script: fn() -> String,
    /// What the script prints if the machine works, line by line.
    pub expected: Expected,
}

/// Where the right result of a workload comes from.
#[derive(Clone, Copy)]
pub enum Expected {
    /// Computed here.
    Known(fn() -> Vec<String>),
    /// The same programs on the host processor.
    Host,
}

/// Every workload there is.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "sqlite",
        what: "a database of 20,000 rows in SQLite: inserts, updates, deletes, queries, a digest",
        packages: &[],
        files: &[],
        script: sqlite_script,
        expected: Expected::Known(sqlite_expected),
    },
    Workload {
        name: "text",
        what: "100,000 lines sorted, added up, compressed and unpacked by BusyBox",
        packages: &[],
        files: &[],
        script: text_script,
        expected: Expected::Known(text_expected),
    },
    Workload {
        name: "openssl",
        what: "OpenSSL's assembly (AES, SHA, AVX2 and other paths), compared with the host",
        packages: &["openssl", "luajit"],
        files: &[("crypto.lua", include_str!("programs/crypto.lua"))],
        script: openssl_script,
        expected: Expected::Host,
    },
    Workload {
        name: "libc",
        what: "the C library's vector strings and mathematics, compared with the host",
        packages: &["luajit"],
        files: &[("library.lua", include_str!("programs/library.lua"))],
        script: || "${RUN}luajit $ROOT/work/library.lua\n".into(),
        expected: Expected::Host,
    },
    Workload {
        name: "luajit",
        what: "a compiler that writes code as it runs, compared with the host",
        packages: &["luajit"],
        files: &[("work.lua", include_str!("programs/work.lua"))],
        script: || {
            "${RUN}luajit $ROOT/work/work.lua && ${RUN}luajit -joff $ROOT/work/work.lua\n".into()
        },
        expected: Expected::Host,
    },
    Workload {
        name: "python",
        what: "Python 3: numbers, texts, containers, compression, compared with the host",
        packages: &["python3-minimal", "libpython3-stdlib"],
        files: &[("work.py", include_str!("programs/work.py"))],
        script: || {
            "export PYTHONHOME=$ROOT/usr PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=1\n\
             ${RUN}python3 -S $ROOT/work/work.py\n"
                .into()
        },
        expected: Expected::Host,
    },
    Workload {
        name: "perl",
        what: "Perl: hashes, regular expressions, sorting, numbers, compared with the host",
        packages: &["perl-base"],
        files: &[("work.pl", include_str!("programs/work.pl"))],
        script: || {
            "export PERL_HASH_SEED=0 PERL5LIB=$ROOT/usr/lib/x86_64-linux-gnu/perl-base\n\
             ${RUN}perl $ROOT/work/work.pl\n"
                .into()
        },
        expected: Expected::Host,
    },
];

fn openssl_script() -> String {
    // The masks switch extensions off, so that each implementation has its turn: AES-NI and
    // PCLMULQDQ, AVX, then AVX2, BMI, ADX and SHA (OPENSSL_ia32cap(3)).
    "export OPENSSL_CONF=/dev/null
cd $ROOT/tmp
i=0; while [ $i -lt 3000 ]; do echo \"line $i of the data\"; i=$((i + 1)); done > data
for mask in : ~0x200000200000000 ~0x1000000000000000 :~0x20080128; do
    export OPENSSL_ia32cap=$mask
    [ $mask = : ] && unset OPENSSL_ia32cap
    for digest in md5 sha1 sha256 sha512 sha3-256; do ${RUN}openssl dgst -$digest data; done
    for cipher in aes-128-cbc aes-256-ctr chacha20 aes-192-cfb; do
        echo $cipher $(${RUN}openssl enc -$cipher -K 00112233445566778899aabbccddeeff \\
            -iv 0f1e2d3c4b5a69788796a5b4c3d2e1f0 -in data 2>/dev/null | ${RUN}openssl dgst -sha256)
    done
    ${RUN}luajit $ROOT/work/crypto.lua
done
"
    .into()
}

impl Workload {
    /// A workload by name.
    pub fn find(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// What to make the guest's file system of.
    pub fn recipe(&self) -> Recipe {
        let files = self.files.iter();
        Recipe {
            task: Task::Script((self.script)()),
            packages: self.packages.iter().map(|&name| name.to_string()).collect(),
            programs: files
                .map(|(name, text)| (format!("work/{name}"), text.as_bytes().to_vec()))
                .collect(),
            ..Recipe::default()
        }
    }

    /// What a right machine prints; `files` is the guest's file system, and `folder` a path that
    /// can be used for a while.
    pub fn expected(&self, files: &Tree, folder: &Path) -> io::Result<Vec<String>> {
        match self.expected {
            Expected::Known(lines) => Ok(lines()),
            Expected::Host => reference::run(folder, files, &(self.script)()),
        }
    }

    /// Compares what the guest printed; the first difference, if there is one.
    pub fn check(&self, output: &[String], expected: &[String]) -> Result<(), String> {
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
        let right = sqlite_expected();
        assert_eq!(workload.check(&right, &right), Ok(()));
        for index in 0..right.len() {
            let mut wrong = right.clone();
            wrong[index].push('0');
            assert!(workload.check(&wrong, &right).is_err());
            wrong.truncate(index);
            assert!(workload.check(&wrong, &right).is_err());
        }
        let mut long = right.clone();
        long.push("more".into());
        assert!(workload.check(&long, &right).is_err());
    }
}
