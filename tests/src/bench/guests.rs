//! The two guests: small classes, and whole programs with what they work on.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use emulator::debian::{self, FetchError, Flavour, Prepared, Progress, Recipe, Task};

use super::classes::{BOOT, PROGRAMS};
use super::measure::{DONE, SHELL};
use crate::repository;

/// Builds `guest-bench`, without libraries of the host.
pub fn build_guest_bench() -> Result<PathBuf> {
    let folder = repository().join("target/guest");
    let target = "x86_64-unknown-linux-gnu";
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(repository())
        .args([
            "build",
            "-q",
            "--release",
            "-p",
            "guests",
            "--bin",
            "guest-bench",
        ])
        .args(["--target", target, "--target-dir"])
        .arg(&folder)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cargo cannot be run")?;
    if !built.success() {
        bail!("guest-bench does not build");
    }
    Ok(folder.join(target).join("release/guest-bench"))
}

/// Something that can be started in several machines, and natively.
pub struct Workload {
    /// The kernel and the file system.
    pub prepared: Prepared,
    /// MiB of RAM.
    pub megabytes: u32,
    /// The classes in it.
    pub names: Vec<&'static str>,
    /// What runs the same natively; `None` if that is not possible here.
    pub native: Option<Vec<String>>,
}

fn script(lines: &str) -> String {
    format!("ifconfig lo 127.0.0.1 up\necho '{SHELL}'\n{lines}\necho '{DONE}'\n")
}

/// A guest with the classes of `guest-bench` alone.
pub fn small(
    cache: &Path,
    flavour: Flavour,
    program: &Path,
    names: &[&'static str],
    scale: u32,
) -> Result<Workload> {
    let names: Vec<&str> = names.iter().copied().filter(|name| *name != BOOT).collect();
    let list = names.join(" ");
    let run = format!("guest-bench run {scale} {list}");
    let recipe = Recipe {
        architecture: None,
        flavour,
        task: Task::Script(script(if names.is_empty() { "" } else { &run })),
        packages: Vec::new(),
        programs: vec![("usr/bin/guest-bench".to_string(), fs::read(program)?)],
        unpack: None,
        refresh: false,
    };
    let prepared = debian::prepare(cache, &recipe, &Progress::new())?;
    let native = format!("{} run {scale} {list} && echo '{DONE}'", program.display());
    Ok(Workload {
        prepared,
        megabytes: 512,
        native: (!names.is_empty()).then(|| ["sh", "-c", &native].map(str::to_string).to_vec()),
        names,
    })
}

/// Runs whole programs: the port of the web server, then their names.
pub const SCRIPT: &str = r#"#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root LC_ALL=C
[ -e /usr/bin/wget ] || [ -e /bin/wget ] || for applet in $(busybox --list); do
    [ -e /usr/bin/$applet ] || busybox ln -s busybox /usr/bin/$applet
done
cd /bench
port=$1
shift
for program; do
    case $program in
    sqlite) guest-bench time sqlite sqlite3 :memory: '.read q.sql';;
    cc1) guest-bench time cc1 /usr/lib*/gcc*/x86_64-linux-gnu/*/cc1 -quiet -fpreprocessed -O2 program.c -o -;;
    python) guest-bench time python /usr/bin/python3.* -S -E -B p.py;;
    gzip) guest-bench time gzip /usr/bin/gzip -6 -c -n text;;
    luajit) guest-bench time luajit /usr/bin/luajit* l.lua;;
    openssl) guest-bench time openssl openssl dgst -sha512 text;;
    shell) guest-bench time shell sh sh.sh;;
    web)
        httpd -f -p 127.0.0.1:$port -h www &
        until wget -q -O /tmp/first http://127.0.0.1:$port/f0; do sleep 1; done
        guest-bench time web sh web.sh $port
        kill $!;;
    esac
done
"#;

const SQL: &str = "create table t(a integer primary key,b,c);
with recursive n(i) as (select 1 union all select i+1 from n where i<60000)
insert into t select i,(i*7919)%10007,'x'||((i*31)%977) from n;
create index ib on t(b);
select count(*),sum(length(x.c)) from t x join t y on x.b=y.a;
select c,count(*) k from t group by c order by k desc,c limit 10;
update t set b=b+1 where a%3=0; select sum(b) from t;
";

const LUA: &str = "local t={} for i=1,300000 do t[i]=(i*7919)%100003 end
local s=0 for r=1,20 do for i=1,#t do s=(s+t[i]*r)%1000003 end end
table.sort(t)
local q={} for i=1,40000 do q[#q+1]=string.format('%d:%s',t[i],string.rep('x',i%7)) end
local function fib(n) if n<2 then return n end return fib(n-1)+fib(n-2) end
local x,y=0.1,0.2 for i=1,3000000 do x=x*1.0001+y*0.5; if x>10 then x=x-10 end end
print(s,#table.concat(q),fib(29),x)
";

const PYTHON: &str = r#"import re,json,hashlib
d={str(i*7919%100003): i for i in range(60000)}
s=sorted(d.items(),key=lambda t:t[0][::-1])
t=sum(v*i%97 for i,(k,v) in enumerate(s))
class A:
    def __init__(s,x): s.x=x
    def f(s,y): return s.x*y+1
o=[A(i) for i in range(1000)]
u=0
for r in range(120):
    for a in o: u=(u+a.f(r))%1000003
j=json.dumps([{"k":k,"v":v} for k,v in s[:20000]]); w=len(json.loads(j))
m=len(re.findall(r'"k": "(\d*7\d)"',j))
print(t,u,w,m,hashlib.sha256(j.encode()).hexdigest())
"#;

const SHELL_SCRIPT: &str = "i=0
while [ $i -lt 150 ]; do x=$(echo $i | sed 's/1/2/'); i=$((i+1)); done
echo $x
";

const WEB: &str = "i=0
while [ $i -lt 60 ]; do
    wget -q -O - http://127.0.0.1:$1/f$((i%4)) | md5sum
    i=$((i+1))
done
";

/// Text with words of different frequency.
fn text(bytes: usize) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "memory",
        "page",
        "the",
        "guest",
        "of",
        "frame",
        "copy",
        "a",
        "mirror",
        "native",
        "kernel",
        "and",
        "store",
        "load",
        "is",
        "translation",
        "block",
        "to",
        "fault",
        "interrupt",
        "0x1f",
    ];
    let mut state = 1u64;
    let mut text = Vec::with_capacity(bytes + 16);
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let draw = (state >> 33) as usize;
        text.extend(WORDS[(draw % 997) * (draw % 1009) % WORDS.len()].bytes());
        if draw.is_multiple_of(11) {
            text.extend((draw % 100_000).to_string().bytes());
        }
        text.push(if draw.is_multiple_of(13) { b'\n' } else { b' ' });
    }
    text.truncate(bytes);
    text
}

/// A C program that needs no header.
fn c_program(functions: u32) -> String {
    let mut text = String::from(
        "struct node { struct node *next; int key; double weight; char name[24]; };\n\
         static unsigned state = 1;\n\
         static unsigned draw(void) { state ^= state << 13; state ^= state >> 17; return state ^= state << 5; }\n",
    );
    for i in 0..functions {
        let (a, b, c) = (i % 7 + 2, i * 31 % 17 + 1, i * 13 % 29);
        let before = i.saturating_sub(1 + i % 5);
        let _ = write!(
            text,
            "int work{i}(struct node *list, int *table, int count) {{
    int sum = {c}; double total = 0; struct node *at;
    for (at = list; at; at = at->next) {{
        total += at->weight * {a}.25 - (at->key % {b});
        switch (at->key % {a}) {{
        case 0: sum += table[at->key & 63]; break;
        case 1: sum ^= at->key << {a}; table[sum & 63]++; break;
        case 2: {{ char *p = at->name; while (*p && *p != {b}) sum = sum * 31 + *p++; break; }}
        default: if (total > {c}.5) sum -= (int)total; else at->weight /= 1.5;
        }}
    }}
    for (int i = 0; i < count; i++) {{
        for (int j = i; j < count; j += {b}) table[i & 63] += table[j & 63] * {a} + (i ^ j);
        if (table[i & 63] > sum) sum = table[i & 63] / {b}; else sum += draw() % {b}u;
    }}
    return sum + {call};
}}
",
            call = if i == 0 {
                "0".to_string()
            } else {
                format!("(count > {a} ? work{before}(list, table, count - 1) : 0)")
            },
        );
    }
    text
}

fn works() -> Vec<(String, Vec<u8>)> {
    let text = text(12 << 20);
    let mut files = vec![
        ("q.sql".to_string(), SQL.into()),
        ("p.py".to_string(), PYTHON.into()),
        ("l.lua".to_string(), LUA.into()),
        ("sh.sh".to_string(), SHELL_SCRIPT.into()),
        ("web.sh".to_string(), WEB.into()),
        ("run".to_string(), SCRIPT.into()),
        ("program.c".to_string(), c_program(50).into_bytes()),
    ];
    for number in 0..4 {
        let part = &text[..(number + 1) * 100_000];
        files.push((format!("www/f{number}"), part.to_vec()));
    }
    files.push(("text".to_string(), text));
    let path = |(name, bytes)| (format!("bench/{name}"), bytes);
    files.into_iter().map(path).collect()
}

/// How a program is run with a folder for its root, if that is possible here.
fn change_root() -> Option<Vec<&'static str>> {
    let ways: [&[&str]; 3] = [
        &["chroot"],
        &["/usr/sbin/chroot"],
        &["unshare", "-r", "chroot"],
    ];
    let works = |way: &&[&str]| {
        let mut command = Command::new(way[0]);
        let output = command.args(&way[1..]).args(["/", "/bin/true"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    ways.into_iter().find(works).map(<[&str]>::to_vec)
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

/// A guest with whole programs; `folder` is where they lie for this host.
pub fn whole(
    cache: &Path,
    flavour: Flavour,
    program: &Path,
    names: &[&'static str],
    folder: &Path,
) -> Result<Workload> {
    let mut chosen: Vec<(&'static str, usize)> = names.iter().map(|name| (*name, 0)).collect();
    loop {
        let sets = |name: &str| {
            PROGRAMS
                .iter()
                .find(|p| p.name == name)
                .map_or(&[][..], |p| p.packages)
        };
        let packages = chosen
            .iter()
            .flat_map(|(name, set)| sets(name)[*set].iter().copied());
        let mut packages: Vec<String> = packages.map(str::to_string).collect();
        packages.sort();
        packages.dedup();
        let names: Vec<&'static str> = chosen.iter().map(|(name, _)| *name).collect();
        let list = names.join(" ");
        let mut programs = works();
        programs.push(("usr/bin/guest-bench".to_string(), fs::read(program)?));
        let recipe = Recipe {
            architecture: None,
            flavour,
            task: Task::Script(script(&format!("sh /bench/run 8080 {list}"))),
            packages,
            programs,
            unpack: Some(folder.to_path_buf()),
            refresh: false,
        };
        match debian::prepare(cache, &recipe, &Progress::new()) {
            Ok(prepared) => {
                let native = change_root().map(|way| -> Result<Vec<String>> {
                    let command = format!(
                        "{} {} /bin/busybox sh /bench/run {} {list} && echo '{DONE}'",
                        way.join(" "),
                        folder.display(),
                        free_port()?
                    );
                    Ok(["sh", "-c", &command].map(str::to_string).to_vec())
                });
                return Ok(Workload {
                    prepared,
                    megabytes: 1024,
                    names,
                    native: native.transpose()?,
                });
            }
            Err(FetchError::Unknown(package)) => {
                // Another release of Debian names it differently, or has none.
                let of_package =
                    |(name, set): &(&str, usize)| sets(name)[*set].contains(&package.as_str());
                if !chosen.iter().any(of_package) {
                    bail!("the package {package} is missing");
                }
                chosen.retain_mut(|entry| {
                    if of_package(entry) {
                        entry.1 += 1;
                    }
                    let left = entry.1 < sets(entry.0).len();
                    if !left {
                        eprintln!(
                            "bench: {} is left out: there is no package {package}",
                            entry.0
                        );
                    }
                    left
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_in_the_script() {
        for program in PROGRAMS {
            assert!(SCRIPT.contains(&format!("guest-bench time {} ", program.name)));
            assert!(!program.packages.is_empty());
        }
    }

    #[test]
    fn inputs_are_always_the_same() {
        assert_eq!(works(), works());
        let source = c_program(40);
        assert_eq!(source.matches('{').count(), source.matches('}').count());
    }
}
