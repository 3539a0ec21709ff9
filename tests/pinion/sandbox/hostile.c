/* A tool that tries to get out of its sandbox and reports what worked, as a ConfigMap on standard output.
 *
 * It stands in place of Helm or Kustomize. The file `witness` in the application's directory names what to try: one `key value` a line.
 * Each attempt is one line of `data`: `worked`, or the errno that refused it. An attempt that needs two steps reports the first that fails.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef MSG_FASTOPEN
#define MSG_FASTOPEN 0x20000000
#endif

static char keys[32][32], values[32][512];
static int count;

static const char *witness(const char *key) {
    for (int i = 0; i < count; i++)
        if (!strcmp(keys[i], key)) return values[i];
    return "";
}

static void report(const char *name, int worked) {
    if (worked) printf("  %s: worked\n", name);
    else printf("  %s: %s\n", name, strerrorname_np(errno) ? strerrorname_np(errno) : "refused");
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void tcp(const char *name, int protocol, int fast, int port) {
    int fd = socket(AF_INET, SOCK_STREAM, protocol);
    struct sockaddr_in address = loopback(port);
    if (fd < 0) return report(name, 0);
    if (fast) report(name, sendto(fd, "x", 1, MSG_FASTOPEN, (void *)&address, sizeof address) == 1);
    else report(name, !connect(fd, (void *)&address, sizeof address));
    close(fd);
}

static void unix_socket(const char *name, const char *path, int abstract) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (fd < 0) return report(name, 0);
    strncpy(address.sun_path + abstract, path, sizeof address.sun_path - 1 - abstract);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path) + !abstract;
    report(name, !connect(fd, (void *)&address, length));
    close(fd);
}

static void opens(const char *name, const char *path, int flags) {
    int fd = open(path, flags, 0600);
    report(name, fd >= 0);
    if (fd >= 0) close(fd);
}

static int clone3_namespace(void) {
    struct { uint64_t flags, rest[10]; } arguments = {.flags = CLONE_NEWUSER, .rest = {0, 0, 0, SIGCHLD}};
    pid_t pid = syscall(SYS_clone3, &arguments, 64);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid > 0;
}

static int traced(pid_t pid) {
    if (ptrace(PTRACE_ATTACH, pid, 0, 0)) return 0;
    waitpid(pid, NULL, 0);
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 1;
}

static int reads_memory(pid_t pid, unsigned long address) {
    char byte;
    struct iovec own = {&byte, 1}, other = {(void *)address, 1};
    return process_vm_readv(pid, &own, 1, &other, 1, 0) == 1;
}

#ifdef __x86_64__
/* The system call `socket` by the table of 32-bit programs: in a child, as it may end it. */
static int i386_socket(void) {
    pid_t pid = fork();
    if (pid == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory");
        _exit(result >= 0 ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    errno = WIFSIGNALED(status) ? EPERM : ENOSYS;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
#endif

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "serve")) return 1;
    if (argc > 2 && !strcmp(argv[1], "edit")) return 0;
    int inherited = 0;
    for (int number = 3; number < 1024; number++) inherited += fcntl(number, F_GETFD) >= 0;
    char path[1024];
    snprintf(path, sizeof path, "%s/witness", argc > 2 && !strcmp(argv[1], "build") ? argv[2] : ".");
    FILE *file = fopen(path, "r");
    if (!file) { perror(path); return 2; }
    while (count < 32 && fscanf(file, "%31s %511s", keys[count], values[count]) == 2) count++;
    fclose(file);
    int port = atoi(witness("tcp")), free_port = atoi(witness("free"));
    pid_t sibling = atoi(witness("sibling"));
    const char *outside = witness("outside");
    char secret[600], made[600], own[1100];
    snprintf(secret, sizeof secret, "%s/secret", outside);
    snprintf(made, sizeof made, "%s/made-by-the-tool", outside);
    snprintf(own, sizeof own, "%.*s/own", (int)(strlen(path) - 8), path);

    printf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: hostile}\ndata:\n");
    opens("read-own", own, O_RDONLY);
    opens("write-own", own, O_WRONLY);
    report("truncate-own", !truncate(own, 1));
    opens("read-outside", secret, O_RDONLY);
    opens("write-outside", made, O_WRONLY | O_CREAT);
    DIR *dir = opendir(outside);
    report("list-outside", dir != NULL);
    if (dir) closedir(dir);
    opens("read-another-request", witness("request"), O_RDONLY);
    opens("read-passwd", "/etc/passwd", O_RDONLY);
    opens("shared-memory", "/dev/shm/made-by-the-tool", O_RDWR | O_CREAT);
    unlink("/dev/shm/made-by-the-tool");
    report("chmod-outside", !chmod(secret, 0640));
    report("times-outside", !utimensat(AT_FDCWD, secret, NULL, 0));
    report("attribute-outside", !setxattr(secret, "user.pinion", "x", 1, 0));
    struct stat metadata;
    report("stat-outside", !stat(secret, &metadata));
    report("run-a-shell", ({ pid_t pid = fork(); int status;
        if (!pid) { execl("/bin/sh", "sh", "-c", "exit 0", NULL); _exit(errno); }
        waitpid(pid, &status, 0); errno = WEXITSTATUS(status); status == 0; }));

    snprintf(path, sizeof path, "/proc/%d/environ", sibling);
    opens("environment-of-another", path, O_RDONLY);
    snprintf(path, sizeof path, "/proc/%d/mem", sibling);
    opens("memory-of-another", path, O_RDONLY);
    report("read-memory-by-call", reads_memory(sibling, strtoul(witness("address"), NULL, 16)));
    report("trace", traced(sibling));
    int pidfd = syscall(SYS_pidfd_open, sibling, 0);
    report("take-a-descriptor", pidfd >= 0 && syscall(SYS_pidfd_getfd, pidfd, 0, 0) >= 0);
    report("signal", !kill(sibling, SIGCONT));
    report("signal-by-pidfd", pidfd >= 0 && !syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0));
    struct rlimit limit;
    report("limits-of-another", !prlimit(sibling, RLIMIT_NOFILE, NULL, &limit));
    report("priority-of-another", !setpriority(PRIO_PROCESS, sibling, 19));

    tcp("tcp", 0, 0, port);
    tcp("mptcp", 262, 0, port);
    tcp("fast-open", 0, 1, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(free_port);
    report("bind", fd >= 0 && !bind(fd, (void *)&address, sizeof address));
    if (fd >= 0) close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    report("listen", fd >= 0 && !listen(fd, 1));
    if (fd >= 0) close(fd);
    address = loopback(atoi(witness("udp")));
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    report("udp", fd >= 0 && sendto(fd, "x", 1, 0, (void *)&address, sizeof address) == 1);
    if (fd >= 0) close(fd);
    fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    report("netlink", fd >= 0);
    if (fd >= 0) close(fd);
    fd = socket(40 /* AF_VSOCK */, SOCK_STREAM, 0);
    report("vsock", fd >= 0);
    if (fd >= 0) close(fd);
    int pair[2];
    report("socket-pair", !socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    unix_socket("unix", witness("unix"), 0);
    unix_socket("abstract", witness("abstract"), 1);
#ifdef __x86_64__
    report("socket-of-32-bits", i386_socket());
    report("socket-by-x32", syscall(0x40000000 | SYS_socket, AF_INET, SOCK_STREAM, 0) >= 0);
#endif

    char parameters[256] = {0};
    report("io-uring", syscall(SYS_io_uring_setup, 1, parameters) >= 0);
    report("system-v-memory", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600) >= 0);
    report("keys", syscall(SYS_add_key, "user", "pinion", "x", 1, -3 /* the session's */) >= 0);
    report("namespace", ({ pid_t pid = fork(); int status;
        if (!pid) _exit(unshare(CLONE_NEWUSER) ? errno : 0);
        waitpid(pid, &status, 0); errno = WEXITSTATUS(status); status == 0; }));
    report("namespace-by-clone3", clone3_namespace());
    report("userfault", syscall(SYS_userfaultfd, 1 /* user mode only */) >= 0);
    report("new-call", syscall(470) >= 0 || errno != ENOSYS);

    /* Something that is to outlive this program: in another group or session, if it can. */
    report("new-group", ({ pid_t pid = fork(); int status;
        if (!pid) _exit(setpgid(0, 0) ? errno : 0);
        waitpid(pid, &status, 0); errno = WEXITSTATUS(status); status == 0; }));
    report("new-group-by-number", ({ pid_t pid = fork(); int status;
        if (!pid) _exit(setpgid(getpid(), getpid()) ? errno : 0);
        waitpid(pid, &status, 0); errno = WEXITSTATUS(status); status == 0; }));
    report("new-session", ({ pid_t pid = fork(); int status;
        if (!pid) _exit(setsid() < 0 ? errno : 0);
        waitpid(pid, &status, 0); errno = WEXITSTATUS(status); status == 0; }));
    int left[2];
    if (pipe(left)) return 2;
    pid_t lingering = fork();
    if (!lingering) {
        setpgid(0, 0);
        setsid();
        /* Nobody waits for what it writes, and this program for what it has done. */
        for (int number = 0; number < 1024; number++) close(number);
        sleep(600);
        _exit(0);
    }
    close(left[1]);
    while (read(left[0], path, 1) > 0);
    printf("  left-behind: \"%d\"\n", lingering);

    printf("  inherited: \"%d\"\n  environment: \"", inherited);
    extern char **environ;
    for (char **entry = environ; *entry; entry++) printf("%.*s ", (int)strcspn(*entry, "="), *entry);
    printf("\"\n  secrets: \"");
    for (char **entry = environ; *entry; entry++)
        if (strstr(*entry, "s3cret")) printf("%.*s ", (int)strcspn(*entry, "="), *entry);
    printf("\"\n");
    return 0;
}
