/*
 * simkvm: the model's descriptors, and the calls of libc that know them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* This file defines functions with libc's names. */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <linux/mempolicy.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "simkvm.h"

#define MAX_FILES 65536

struct SimFile {
    int refs;                   /* atomic: descriptors and callers */
    SimKind kind;
    void *object;
    void (*destroy)(void *object);
};

static pthread_rwlock_t files_lock = PTHREAD_RWLOCK_INITIALIZER;
static SimFile *files[MAX_FILES];

/* False at first: a sanitizer maps memory before the model is ready. */
static bool begun;

/* The next function of that name: libc's, or a sanitizer's */
#define REAL(ret, name, ...)                                            \
    static ret (*real_##name(void))(__VA_ARGS__)                        \
    {                                                                   \
        static void *fn;                                                \
        void *f = __atomic_load_n(&fn, __ATOMIC_ACQUIRE);               \
                                                                        \
        if (!f) {                                                       \
            f = dlsym(RTLD_NEXT, #name);                                \
            __atomic_store_n(&fn, f, __ATOMIC_RELEASE);                 \
        }                                                               \
        return (ret (*)(__VA_ARGS__))f;                                 \
    }

REAL(int, open, const char *, int, ...)
REAL(int, openat, int, const char *, int, ...)
REAL(int, close, int)
REAL(int, dup, int)
REAL(int, dup2, int, int)
REAL(int, dup3, int, int, int)
REAL(int, fcntl, int, int, ...)
REAL(int, ioctl, int, unsigned long, ...)
REAL(void *, mmap, void *, size_t, int, int, int, off_t)
REAL(int, munmap, void *, size_t)
REAL(int, madvise, void *, size_t, int)
REAL(int, fallocate, int, int, off_t, off_t)
REAL(int, ftruncate, int, off_t)
REAL(int, fstat, int, struct stat *)
REAL(ssize_t, read, int, void *, size_t)
REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, pread, int, void *, size_t, off_t)
REAL(ssize_t, pwrite, int, const void *, size_t, off_t)
REAL(off_t, lseek, int, off_t, int)
REAL(int, fsync, int)
REAL(int, fchmod, int, mode_t)
REAL(int, mprotect, void *, size_t, int)
REAL(int, sigaction, int, const struct sigaction *, struct sigaction *)

int sim_real_ioctl(int fd, unsigned long request, void *arg)
{
    int ret = real_ioctl()(fd, request, arg);

    return ret < 0 ? -errno : ret;
}

void *sim_real_mmap(void *addr, size_t len, int prot, int flags, int fd,
                    off_t offset)
{
    return real_mmap()(addr, len, prot, flags, fd, offset);
}

int sim_real_munmap(void *addr, size_t len)
{
    return real_munmap()(addr, len);
}

int sim_real_close(int fd)
{
    return real_close()(fd);
}

int sim_real_open(const char *path, int flags)
{
    return real_open()(path, flags);
}

int sim_real_fallocate(int fd, int mode, off_t offset, off_t len)
{
    return real_fallocate()(fd, mode, offset, len) ? -errno : 0;
}

int sim_real_dup(int fd)
{
    return real_fcntl()(fd, F_DUPFD_CLOEXEC, 0);
}

int sim_real_fstat(int fd, struct stat *st)
{
    return real_fstat()(fd, st);
}

int sim_copy_from_user(void *dst, const void *user, size_t len)
{
    struct iovec to = { dst, len }, from = { (void *)user, len };

    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)len
           ? 0 : -EFAULT;
}

int sim_copy_to_user(void *user, const void *src, size_t len)
{
    struct iovec from = { (void *)src, len }, to = { user, len };

    return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)len
           ? 0 : -EFAULT;
}

/* --- descriptors --- */

void sim_file_put(SimFile *file)
{
    if (file && !__atomic_sub_fetch(&file->refs, 1, __ATOMIC_ACQ_REL)) {
        file->destroy(file->object);
        g_free(file);
    }
}

static void install(int fd, SimFile *file)
{
    SimFile *old;

    if (fd >= MAX_FILES) {
        sim_unmodelled("descriptor %d", fd);
    }
    pthread_rwlock_wrlock(&files_lock);
    old = files[fd];
    __atomic_store_n(&files[fd], file, __ATOMIC_RELAXED);
    pthread_rwlock_unlock(&files_lock);
    sim_file_put(old);
}

int sim_file_add(int fd, SimKind kind, void *object,
                 void (*destroy)(void *object))
{
    SimFile *file = g_new0(SimFile, 1);

    file->refs = 1;
    file->kind = kind;
    file->object = object;
    file->destroy = destroy;
    install(fd, file);
    return fd;
}

/* The file behind a descriptor with a reference, or NULL. */
static SimFile *get(int fd)
{
    SimFile *file;

    if (fd < 0 || fd >= MAX_FILES ||
        !__atomic_load_n(&files[fd], __ATOMIC_RELAXED)) {
        return NULL;
    }
    pthread_rwlock_rdlock(&files_lock);
    file = files[fd];
    if (file) {
        __atomic_fetch_add(&file->refs, 1, __ATOMIC_RELAXED);
    }
    pthread_rwlock_unlock(&files_lock);
    return file;
}

void *sim_file_get(int fd, SimKind kind, SimFile **file)
{
    *file = get(fd);
    if (*file && (*file)->kind != kind) {
        sim_file_put(*file);
        *file = NULL;
    }
    return *file ? (*file)->object : NULL;
}

/* @fd has become a duplicate of @from. */
static int duplicated(int from, int fd)
{
    SimFile *file = fd < 0 ? NULL : get(from);

    if (fd >= 0 && fd < MAX_FILES && (file || files[fd])) {
        install(fd, file);
    }
    return fd;
}

static int result(int ret)
{
    if (ret < 0) {
        errno = -ret;
        return -1;
    }
    return ret;
}

/* --- libc --- */

static bool is_device(const char *path, const char *device)
{
    return !strcmp(path, device);
}

/* open() of what the model offers; *fd is the descriptor, or -1. */
static bool open_device(const char *path, int flags, int *fd)
{
    if (is_device(path, "/dev/kvm")) {
        *fd = sim_open_kvm(flags);
    } else if (is_device(path, "/dev/sev") &&
               sim_config.vm_types & 1u << KVM_X86_SNP_VM) {
        *fd = sim_open_sev(flags);
    } else {
        return false;
    }
    *fd = result(*fd);
    return true;
}

static mode_t mode_of(int flags, va_list args)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE
           ? va_arg(args, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;
    int fd;

    va_start(args, flags);
    mode = mode_of(flags, args);
    va_end(args);
    return open_device(path, flags, &fd) ? fd
           : real_open()(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int dir, const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;
    int fd;

    va_start(args, flags);
    mode = mode_of(flags, args);
    va_end(args);
    return open_device(path, flags, &fd) ? fd
           : real_openat()(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
    __attribute__((alias("openat")));

int close(int fd)
{
    if (fd >= 0 && fd < MAX_FILES &&
        __atomic_load_n(&files[fd], __ATOMIC_RELAXED)) {
        install(fd, NULL);
    }
    return real_close()(fd);
}

int dup(int fd)
{
    return duplicated(fd, real_dup()(fd));
}

int dup2(int from, int to)
{
    int fd = real_dup2()(from, to);

    return from == to ? fd : duplicated(from, fd);
}

int dup3(int from, int to, int flags)
{
    return duplicated(from, real_dup3()(from, to, flags));
}

int fcntl(int fd, int command, ...)
{
    va_list args;
    void *arg;
    int ret;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    ret = real_fcntl()(fd, command, arg);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC
           ? duplicated(fd, ret) : ret;
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

int ioctl(int fd, unsigned long request, ...)
{
    SimFile *file = get(fd);
    va_list args;
    void *arg;
    int ret;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (!file) {
        return real_ioctl()(fd, request, arg);
    }
    /* The number of an ioctl has 32 bits; callers may extend its sign. */
    ret = sim_ioctl(file->kind, file->object, fd, (uint32_t)request, arg);
    sim_file_put(file);
    return result(ret);
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    SimFile *file;
    SimGmem *gmem = NULL;
    void *p;
    int ret;

    if (!(flags & MAP_ANONYMOUS)) {
        gmem = sim_file_get(fd, SIM_GMEM, &file);
    }
    if (gmem) {
        ret = sim_fault("mmap", NULL);
        if (ret) {
            errno = -ret;
            p = MAP_FAILED;
        } else {
            p = sim_gmem_mmap(gmem, addr, len, prot, flags, fd, offset);
        }
        sim_log("mmap", p == MAP_FAILED ? -errno : 0, "\"file\": %" PRIu64
                ", \"offset\": %" PRIu64 ", \"size\": %zu", gmem->number,
                (uint64_t)offset, len);
        sim_file_put(file);
        if (ret) {
            errno = -ret;
        }
        return p;
    }
    if (flags & MAP_FIXED && begun) {
        sim_gmem_unmap(addr, len);
    }
    return real_mmap()(addr, len, prot, flags, fd, offset);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

int munmap(void *addr, size_t len)
{
    if (begun) {
        sim_gmem_unmap(addr, len);
    }
    return real_munmap()(addr, len);
}

/* MADV_REMOVE of a private page punches a hole. */
int madvise(void *addr, size_t len, int advice)
{
    SimGmem *gmem = NULL;
    uint64_t offset;
    int ret;

    if (advice == MADV_REMOVE) {
        gmem = sim_gmem_at(addr, &offset);
    }
    if (!gmem) {
        return real_madvise()(addr, len, advice);
    }
    ret = sim_gmem_fallocate(gmem, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             offset, len);
    sim_gmem_unref(gmem);
    return result(ret);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    SimFile *file;
    SimGmem *gmem = sim_file_get(fd, SIM_GMEM, &file);
    int ret;

    if (!gmem) {
        return real_fallocate()(fd, mode, offset, len);
    }
    ret = sim_gmem_fallocate(gmem, mode, offset, len);
    sim_log("fallocate", ret, "\"file\": %" PRIu64 ", \"mode\": %d, "
            "\"offset\": %" PRIu64 ", \"size\": %" PRIu64, gmem->number, mode,
            (uint64_t)offset, (uint64_t)len);
    sim_file_put(file);
    return result(ret);
}

int fallocate64(int fd, int mode, off_t offset, off_t len)
    __attribute__((alias("fallocate")));

/* Is it a guest_memfd?  These have no size to change and no reads. */
static bool is_gmem(int fd)
{
    SimFile *file;
    bool is = sim_file_get(fd, SIM_GMEM, &file);

    if (is) {
        sim_file_put(file);
    }
    return is;
}

int ftruncate(int fd, off_t size)
{
    return is_gmem(fd) ? result(-EINVAL) : real_ftruncate()(fd, size);
}

int ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));

int fstat(int fd, struct stat *st)
{
    int ret = real_fstat()(fd, st);

    if (!ret && is_gmem(fd)) {
        st->st_blocks = 0;
    }
    return ret;
}

int fstat64(int fd, struct stat64 *st)
{
    return fstat(fd, (struct stat *)st);
}

ssize_t read(int fd, void *buf, size_t len)
{
    return is_gmem(fd) ? result(-EINVAL) : real_read()(fd, buf, len);
}

ssize_t write(int fd, const void *buf, size_t len)
{
    return is_gmem(fd) ? result(-EINVAL) : real_write()(fd, buf, len);
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset)
{
    return is_gmem(fd) ? result(-ESPIPE)
           : real_pread()(fd, buf, len, offset);
}

ssize_t pread64(int fd, void *buf, size_t len, off_t offset)
    __attribute__((alias("pread")));

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    return is_gmem(fd) ? result(-ESPIPE)
           : real_pwrite()(fd, buf, len, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t offset)
    __attribute__((alias("pwrite")));

off_t lseek(int fd, off_t offset, int whence)
{
    return is_gmem(fd) ? result(-ESPIPE) : real_lseek()(fd, offset, whence);
}

off_t lseek64(int fd, off_t offset, int whence)
    __attribute__((alias("lseek")));

int fsync(int fd)
{
    return is_gmem(fd) ? result(-EINVAL) : real_fsync()(fd);
}

int fchmod(int fd, mode_t mode)
{
    return is_gmem(fd) ? result(-EINVAL) : real_fchmod()(fd, mode);
}

/* A mapping without PROT_EXEC cannot get it later. */
int mprotect(void *addr, size_t len, int prot)
{
    uint64_t offset;
    SimGmem *gmem = prot & PROT_EXEC && begun ? sim_gmem_at(addr, &offset)
                                              : NULL;

    if (!gmem) {
        return real_mprotect()(addr, len, prot);
    }
    sim_gmem_unref(gmem);
    return result(-EACCES);
}

/*
 * A NUMA policy is the file's, whatever the state of a page, but where a page
 * is private the mapping is of another file: ask for the view instead.
 */
static void *policy_address(void *addr, SimGmem **gmem)
{
    uint64_t offset;

    *gmem = begun ? sim_gmem_at(addr, &offset) : NULL;
    return *gmem ? (*gmem)->view + offset : addr;
}

long mbind(void *addr, unsigned long len, int mode, const unsigned long *nodes,
           unsigned long max, unsigned flags)
{
    SimGmem *gmem;
    long ret;

    addr = policy_address(addr, &gmem);
    ret = syscall(SYS_mbind, addr, len, mode, nodes, max, flags);
    if (gmem) {
        sim_gmem_unref(gmem);
    }
    return ret;
}

long get_mempolicy(int *mode, unsigned long *nodes, unsigned long max,
                   void *addr, unsigned flags)
{
    SimGmem *gmem = NULL;
    long ret;

    if (flags & MPOL_F_ADDR) {
        addr = policy_address(addr, &gmem);
    }
    ret = syscall(SYS_get_mempolicy, mode, nodes, max, addr, flags);
    if (gmem) {
        sim_gmem_unref(gmem);
    }
    return ret;
}

/* --- touches of private pages --- */

static struct sigaction app_sigbus = { .sa_handler = SIG_DFL };

/* Counts a touch of a private page, then calls the emulator's handler. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    uint64_t offset;
    SimGmem *gmem = sim_gmem_at(info->si_addr, &offset);

    if (gmem) {
        sim_count(SIM_HOST_TOUCHES, 1);
        sim_log("touch", 0, "\"file\": %" PRIu64 ", \"offset\": %" PRIu64,
                gmem->number, offset);
        sim_gmem_unref(gmem);
    }
    if (app_sigbus.sa_flags & SA_SIGINFO) {
        app_sigbus.sa_sigaction(signal, info, context);
    } else if (app_sigbus.sa_handler != SIG_DFL &&
               app_sigbus.sa_handler != SIG_IGN) {
        app_sigbus.sa_handler(signal);
    } else {
        if (gmem) {
            fprintf(stderr, "simkvm: SIGBUS: a touch of private memory at %p"
                    "\n", info->si_addr);
            sim_report_write();
        }
        /* Returns to the access, which then ends the process. */
        real_sigaction()(SIGBUS, &app_sigbus, NULL);
    }
}

static void catch_sigbus(void)
{
    struct sigaction action = {
        .sa_sigaction = on_sigbus,
        .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK,
    };

    real_sigaction()(SIGBUS, &action, NULL);
}

int sigaction(int signal, const struct sigaction *action,
              struct sigaction *old)
{
    if (signal != SIGBUS) {
        return real_sigaction()(signal, action, old);
    }
    if (old) {
        *old = app_sigbus;
    }
    if (action) {
        app_sigbus = *action;
    }
    return 0;
}

static void __attribute__((constructor)) begin(void)
{
    sim_config_load();
    catch_sigbus();
    begun = true;
}

static void __attribute__((destructor)) end(void)
{
    sim_sample_memory();
    sim_report_write();
}
