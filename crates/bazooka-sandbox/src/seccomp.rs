//! The system calls that an instance may make: those that programs need, and none that administer a machine.
//!
//! Owns the list; `tree` turns it into the filter, and `seccompiler` installs that. A call that isn't on the list
//! returns `ENOSYS`, as on a kernel that doesn't have it, because libraries can handle that. So the calls of a later
//! kernel are refused until they are added.

mod tree;

use std::collections::BTreeMap;

use nix::libc::{self, c_int, c_long};
use seccompiler::BpfProgram;

use tree::{Verdict, Word};

/// Builds the filter, as the kernel takes it.
pub fn filter() -> BpfProgram {
    let number = |call: c_long| u32::try_from(call).expect("call numbers are small");
    let mut calls: BTreeMap<u32, Verdict> = BTreeMap::new();
    calls.extend(ALLOWED.iter().chain(OLDER).map(|call| (number(*call), Verdict::Allow)));
    calls.extend(with_conditions().map(|(call, lists)| (number(call), Verdict::AllowIf(lists))));
    // Neighbours with the same verdict are one range.
    let mut ranges = vec![(0, Verdict::Absent)];
    let mut next = 0;
    for (call, verdict) in calls {
        if call > next && ranges.last().is_some_and(|(_, last)| *last != Verdict::Absent) {
            ranges.push((next, Verdict::Absent));
        }
        if ranges.last().is_some_and(|(_, last)| *last != verdict) {
            ranges.push((call, verdict));
        }
        next = call + 1;
    }
    ranges.push((next, Verdict::Absent));
    tree::program(&ranges)
}

/// Returns the conditions on the arguments of calls that are allowed only in part.
fn with_conditions() -> [(c_long, Vec<Vec<Word>>); 4] {
    let is = |argument, value: c_int| Word { argument, mask: u32::MAX, value: value as u32 };
    // No namespaces: in a namespace of its own a process has rights. clone3 is refused, because its flags are in
    // memory that no filter sees.
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32;
    let clone = vec![Word { argument: 0, mask: namespaces, value: 0 }];
    // No raw packets, and only the common address families and protocols.
    let mut socket = vec![vec![is(0, libc::AF_UNIX)]];
    socket.push(vec![is(0, libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE)]);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            socket.push(vec![is(0, family), is(2, protocol)]);
        }
    }
    // Other families than this one have pairs too (TIPC), which the fence doesn't know.
    let pair = vec![is(0, libc::AF_UNIX)];
    // Values for programs that only query the personality, or that ask for a 32-bit machine's name or an old kernel's
    // version (PER_LINUX32, UNAME26).
    let personality = [0, 0x0008, 0x0002_0000, 0x0002_0008, -1].map(|value| vec![is(0, value)]);
    [
        (libc::SYS_clone, vec![clone]),
        (libc::SYS_socket, socket),
        (libc::SYS_socketpair, vec![pair]),
        (libc::SYS_personality, personality.into()),
    ]
}

/// Calls of every architecture.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_read, libc::SYS_write,
    libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev,
    libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_tee,
    libc::SYS_vmsplice, libc::SYS_copy_file_range, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_mkdirat, libc::SYS_mknodat,
    libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat, libc::SYS_truncate,
    libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync, libc::SYS_syncfs,
    libc::SYS_sync_file_range, libc::SYS_readahead, libc::SYS_fadvise64, libc::SYS_flock, libc::SYS_fcntl,
    libc::SYS_ioctl, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_umask, libc::SYS_memfd_create,
    libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_flistxattr, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_removexattr,
    libc::SYS_lremovexattr, libc::SYS_fremovexattr, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Waiting.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll,
    libc::SYS_pselect6, libc::SYS_eventfd2, libc::SYS_signalfd4, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_io_setup, libc::SYS_io_submit, libc::SYS_io_cancel, libc::SYS_io_getevents,
    libc::SYS_io_destroy,
    // Calls on existing sockets.
    libc::SYS_bind, libc::SYS_connect, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_sendto,
    libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_msync,
    libc::SYS_mincore, libc::SYS_brk, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_mlockall,
    libc::SYS_munlockall, libc::SYS_membarrier, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect,
    libc::SYS_remap_file_pages, libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmdt, libc::SYS_shmctl,
    libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_semctl, libc::SYS_msgget, libc::SYS_msgsnd,
    libc::SYS_msgrcv, libc::SYS_msgctl, libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_mq_timedsend,
    libc::SYS_mq_timedreceive, libc::SYS_mq_notify, libc::SYS_mq_getsetattr, libc::SYS_process_mrelease,
    // Processes and threads.
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal,
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getpgid, libc::SYS_setpgid, libc::SYS_getsid,
    libc::SYS_setsid, libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_getrusage, libc::SYS_times,
    libc::SYS_prlimit64, libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prctl, libc::SYS_seccomp,
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
    libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_restart_syscall, libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_setparam, libc::SYS_sched_getscheduler, libc::SYS_sched_setscheduler, libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_getcpu,
    // Users: a process without rights gains none by these calls.
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid,
    libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid,
    libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setgroups, libc::SYS_setfsuid,
    libc::SYS_setfsgid, libc::SYS_capget, libc::SYS_capset,
    // Signals.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack,
    // Time, and what the machine is.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    libc::SYS_gettimeofday, libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create,
    libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_getoverrun, libc::SYS_timer_delete,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom,
];

/// Calls that later ones replace; older architectures still have them.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat, libc::SYS_link,
    libc::SYS_symlink, libc::SYS_mknod, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_getdents, libc::SYS_dup2, libc::SYS_pipe,
    libc::SYS_inotify_init, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_select,
    libc::SYS_eventfd, libc::SYS_signalfd, libc::SYS_fork, libc::SYS_vfork, libc::SYS_getpgrp, libc::SYS_alarm,
    libc::SYS_pause, libc::SYS_time, libc::SYS_arch_prctl,
];

/// Calls that later ones replace; this architecture never had most of them.
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[libc::SYS_renameat];

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(call: c_long, arguments: [c_int; 3]) -> bool {
        let number = u32::try_from(call).expect("it is small");
        tree::run(&filter(), tree::OWN, number, arguments.map(|argument| argument as u32)).0
            == libc::SECCOMP_RET_ALLOW
    }

    #[test]
    fn a_call_is_allowed_if_it_is_on_the_list() {
        let conditional: Vec<c_long> = with_conditions().iter().map(|(call, _)| *call).collect();
        for call in (0..1_000).chain(0x4000_0000..0x4000_0200) {
            if !conditional.contains(&call) {
                let listed = ALLOWED.contains(&call) || OLDER.contains(&call);
                assert_eq!(is_allowed(call, [0; 3]), listed, "{call:#x}");
            }
        }
    }

    #[test]
    fn families_protocols_and_flags_are_looked_at() {
        let tipc = 30;
        for (call, arguments, allowed) in [
            (libc::SYS_socketpair, [libc::AF_UNIX, libc::SOCK_STREAM, 0], true),
            (libc::SYS_socketpair, [tipc, libc::SOCK_STREAM, 0], false),
            (libc::SYS_socketpair, [libc::AF_INET, libc::SOCK_STREAM, 0], false),
            (libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, 0], true),
            (libc::SYS_socket, [libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP], true),
            (libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP], false),
            (libc::SYS_socket, [tipc, libc::SOCK_STREAM, 0], false),
            (libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE], true),
            (libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT], false),
            (libc::SYS_clone, [libc::CLONE_VM | libc::CLONE_THREAD, 0, 0], true),
            (libc::SYS_clone, [libc::CLONE_NEWUSER, 0, 0], false),
            (libc::SYS_clone, [libc::CLONE_NEWNET | libc::SIGCHLD, 0, 0], false),
            (libc::SYS_personality, [-1, 0, 0], true),
            (libc::SYS_personality, [0x0040_0000, 0, 0], false),
        ] {
            assert_eq!(is_allowed(call, arguments), allowed, "{call} {arguments:x?}");
        }
    }
}
