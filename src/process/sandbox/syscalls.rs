//! The system calls that a child in a sandbox may not make. They fail with an errno.
//!
//! Landlock knows files and TCP ports; what reaches other processes, the kernel and the network by other ways is refused here. Each filter
//! has one errno, so that there are three: `EPERM` for most; `ENOSYS` for `clone3`, whose flags are in memory where no filter sees them, and
//! at which C libraries fall back to `clone`; and `ENOSYS` for calls that are newer than this list, and for the second set of call numbers
//! of x86-64 (x32), which begins far above them.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    sock_filter,
};

use rustix::process::Pid;

use super::Profile;

/// Processes of others, the kernel itself, namespaces, mounts, keys, shared memory of System V: nothing that a tool needs.
const FOREIGN: [libc::c_long; 62] = [
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioprio_set,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_listen,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_setpriority,
    libc::SYS_settimeofday,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmget,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// What Landlock leaves open: who owns a file and what stands beside its content, by its path alone.
const METADATA: [libc::c_long; 8] = [
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    libc::SYS_utimensat,
];

/// The same under the numbers that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const OLD_METADATA: [libc::c_long; 6] =
    [libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat];
#[cfg(not(target_arch = "x86_64"))]
const OLD_METADATA: [libc::c_long; 0] = [];

/// Flags of `clone` that make a namespace.
const NAMESPACES: [u64; 7] = [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// `MSG_FASTOPEN`: a connection without `connect`, which Landlock does not see.
const FAST_OPEN: u64 = 0x2000_0000;

/// Can filters be laid on a thread here? Tries it on this one.
pub fn is_supported() -> bool {
    filters(Profile::Offline, false, None).is_ok_and(|filters| apply(&filters).is_ok())
}

/// Lays filters on this thread, for good.
///
/// # Errors
///
/// When the kernel refuses.
pub fn apply(filters: &[BpfProgram]) -> io::Result<()> {
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter).map_err(io::Error::other))
}

/// The filters of a profile. A child that writes somewhere may also change who owns a file there. It may enter this process group alone;
/// without one, make its own.
///
/// # Errors
///
/// On processors whose system calls are not known.
pub fn filters(profile: Profile, writes: bool, group: Option<Pid>) -> io::Result<Vec<BpfProgram>> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let build = |calls, action| -> io::Result<BpfProgram> {
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture).map_err(io::Error::other)?;
        filter.try_into().map_err(io::Error::other)
    };
    let denied = denied(profile, writes, group).map_err(io::Error::other)?;
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut filters = vec![build(denied, errno(libc::EPERM))?, build(unknown, errno(libc::ENOSYS))?];
    filters.push(unknown_numbers());
    Ok(filters)
}

type Calls = BTreeMap<i64, Vec<SeccompRule>>;

fn denied(profile: Profile, writes: bool, group: Option<Pid>) -> Result<Calls, seccompiler::BackendError> {
    let mut calls: Calls = FOREIGN.into_iter().map(|call| (call, Vec::new())).collect();
    let is = |argument: u8, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let is_not = |argument: u8, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value);
    let has = |argument: u8, mask: u64, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
    };
    let rule = |conditions: Vec<Result<SeccompCondition, _>>| {
        SeccompRule::new(conditions.into_iter().collect::<Result<Vec<_>, seccompiler::BackendError>>()?)
    };
    // Limits and processors of other processes.
    for call in [libc::SYS_prlimit64, libc::SYS_sched_setaffinity, libc::SYS_sched_setattr, libc::SYS_sched_setscheduler] {
        calls.insert(call, vec![rule(vec![is_not(0, 0)])?]);
    }
    let namespaces: Result<Vec<_>, _> = NAMESPACES.into_iter().map(|flag| rule(vec![has(0, flag, flag)])).collect();
    calls.insert(libc::SYS_clone, namespaces?);
    // Typing into a terminal.
    calls.insert(libc::SYS_ioctl, vec![rule(vec![is(1, libc::TIOCSTI)])?, rule(vec![is(1, libc::TIOCLINUX)])?]);
    if !writes && profile == Profile::Offline {
        calls.extend(METADATA.into_iter().chain(OLD_METADATA).map(|call| (call, Vec::new())));
    }
    if profile != Profile::Helper {
        // A child's group is how it is ended with all that it started. It enters its group after this filter was laid on.
        let group = u64::from(Pid::as_raw(group).cast_unsigned());
        calls.insert(libc::SYS_setsid, Vec::new());
        calls.insert(libc::SYS_setpgid, vec![rule(vec![is_not(0, 0)])?, rule(vec![is_not(1, group)])?]);
    }
    match profile {
        Profile::Offline => {
            for call in [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind] {
                calls.insert(call, Vec::new());
            }
        }
        Profile::Git => {
            // TCP over IPv4 and IPv6, and nothing else.
            let mut sockets = vec![
                rule(vec![is_not(0, libc::AF_INET as u64), is_not(0, libc::AF_INET6 as u64)])?,
                rule(vec![is_not(2, 0), is_not(2, libc::IPPROTO_TCP as u64)])?,
            ];
            for kind in (0..16).filter(|kind| *kind != libc::SOCK_STREAM as u64) {
                sockets.push(rule(vec![has(1, 0xf, kind)])?);
            }
            calls.insert(libc::SYS_socket, sockets);
            for (call, argument) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
                calls.insert(call, vec![rule(vec![has(argument, FAST_OPEN, FAST_OPEN)])?]);
            }
            let connect = rule(vec![is(1, libc::IPPROTO_TCP as u64), is(2, libc::TCP_FASTOPEN_CONNECT as u64)])?;
            calls.insert(libc::SYS_setsockopt, vec![connect]);
        }
        Profile::Helper => {
            // Its network is its own, and so is what it listens on.
            for call in [libc::SYS_accept, libc::SYS_accept4, libc::SYS_listen] {
                calls.remove(&call);
            }
        }
    }
    Ok(calls)
}

/// Refuses calls that are newer than those that were looked at, and the second set of x86-64, each of which is one of the first.
fn unknown_numbers() -> BpfProgram {
    // Behind `mseal`: what came since changes attributes and mounts. Numbers this high are the same on every architecture.
    const UNKNOWN: u32 = 463;
    const LOAD_NUMBER: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let compare = sock_filter { code: 0x35, jt: 0, jf: 1, k: UNKNOWN };
    let refuse = sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | libc::ENOSYS.unsigned_abs() };
    let allow = sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 };
    vec![LOAD_NUMBER, compare, refuse, allow]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_made_for_every_profile() {
        for profile in [Profile::Offline, Profile::Git, Profile::Helper] {
            for writes in [false, true] {
                assert!(filters(profile, writes, None).expect("filters").iter().all(|filter| !filter.is_empty()));
            }
        }
        let calls = |profile| denied(profile, false, None).expect("rules");
        assert!(calls(Profile::Offline)[&libc::SYS_socket].is_empty(), "whatever its arguments");
        assert!(!calls(Profile::Git)[&libc::SYS_socket].is_empty());
        assert!(!calls(Profile::Helper).contains_key(&libc::SYS_socket));
    }
}
