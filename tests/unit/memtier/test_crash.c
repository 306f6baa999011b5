/* A writer that dies: at every single system call of a fixed script (before it, after it, and in
 * the middle of a write), and at random times. Whatever happens, the next writer finds each object
 * as it was before or after some step, nothing torn, and no file nobody names. */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The linker sends the calls of the code under test through these (see meson.build). */
enum death { DIE_BEFORE, DIE_AFTER, DIE_HALF, DEATHS };
static long calls_left = -1;
static enum death death;
static long pwrites;
static int dirty_fd = -1; /* has segments that no fsync covers yet */

static void die(void)
{
    kill(getpid(), SIGKILL);
    pause();
}
static bool is_last(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}
#define WRAPPED(ret_type, name, params, args)                                                      \
    ret_type __real_##name params;                                                                 \
    ret_type __wrap_##name params;                                                                 \
    ret_type __wrap_##name params                                                                  \
    {                                                                                              \
        bool last = is_last();                                                                     \
        if (last && death == DIE_BEFORE)                                                           \
            die();                                                                                 \
        ret_type rc = __real_##name args;                                                          \
        if (last)                                                                                  \
            die();                                                                                 \
        return rc;                                                                                 \
    }
WRAPPED(int, unlink, (const char *path), (path))
WRAPPED(int, close, (int fd), (fd))
/* The C library's names with and without 64-bit offsets; which one is called is the build's choice.
 */
WRAPPED(int, ftruncate, (int fd, off_t len), (fd, len))
WRAPPED(int, ftruncate64, (int fd, off_t len), (fd, len))
WRAPPED(int, fallocate, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAPPED(int, fallocate64, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    bool last = is_last();
    if (last && death == DIE_BEFORE)
        die();
    int rc = __real_fsync(fd);
    dirty_fd = fd == dirty_fd ? -1 : dirty_fd;
    if (last)
        die();
    return rc;
}
/* What a kill cannot show but a power cut would: an index on disk before the data it names. */
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    bool last = is_last();
    if (dirty_fd >= 0)
        abort();
    if (last && death == DIE_BEFORE)
        die();
    int rc = __real_rename(from, to);
    if (last)
        die();
    return rc;
}

ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len)
{
    bool last = is_last();
    if (last && death == DIE_BEFORE)
        die();
    ssize_t rc = __real_write(fd, data, last && death == DIE_HALF ? len / 2 : len);
    if (last)
        die();
    return rc;
}
#define WRAPPED_PWRITE(name)                                                                       \
    ssize_t __real_##name(int fd, const void *data, size_t len, off_t at);                         \
    ssize_t __wrap_##name(int fd, const void *data, size_t len, off_t at);                         \
    ssize_t __wrap_##name(int fd, const void *data, size_t len, off_t at)                          \
    {                                                                                              \
        bool last = is_last();                                                                     \
        if (last && death == DIE_BEFORE)                                                           \
            die();                                                                                 \
        pwrites++, dirty_fd = len > 64 ? fd : dirty_fd;                                            \
        ssize_t rc = __real_##name(fd, data, last && death == DIE_HALF ? len / 2 : len, at);       \
        if (last)                                                                                  \
            die();                                                                                 \
        return rc;                                                                                 \
    }
WRAPPED_PWRITE(pwrite)
WRAPPED_PWRITE(pwrite64)

/* A killed process loses nothing the kernel has, so the disk adds nothing here but its slowness. */
static const char *memory_dir(void)
{
    return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL;
}

/* An object of the script: name, and how its segments follow from the version. */
static void object_samples(uint64_t version, struct sample s[3])
{
    sample_init(&s[0], version, 5000);
    sample_init(&s[1], version / 2 + 1000, 9000); /* shared by two versions */
    sample_init(&s[2], 42, 100);                  /* shared by all */
}

static int put_version(struct memtier_store *st, const char *name, uint64_t version)
{
    struct sample s[3];
    struct memtier_writer *w = NULL;
    struct err e;
    char meta[20000] = {0}; /* large enough to be a segment of its own */
    object_samples(version, s);
    if (memtier_writer_open(st, name, 20000, &w, &e) != ERR_OK)
        return 1;
    for (int i = 0; i < 3; i++) {
        char data[9000];
        sample_fill(&s[i], data);
        if (memtier_writer_add(w, MEMTIER_KIND_LAYER, data, s[i].bytes, NULL, &e) != ERR_OK)
            return 2;
    }
    memcpy(meta, &version, sizeof(version));
    return memtier_writer_commit(&w, meta, version % 3 == 0 ? sizeof(meta) : 8, &e) != ERR_OK;
}

static int script(const char *dir)
{
    struct memtier_store *st = NULL;
    struct memtier_gc_report gc;
    struct err e;
    if (memtier_store_open(dir, MEMTIER_WRITE, &st, &e) != ERR_OK)
        return 10;
    if (put_version(st, "a", 3) || put_version(st, "b", 5) || put_version(st, "a", 6) ||
        memtier_store_remove(st, "b", &e) || memtier_store_gc(st, &gc, &e) ||
        put_version(st, "b", 7) || memtier_store_gc(st, &gc, &e))
        return 11;
    memtier_store_close(&st);
    return 0;
}

/* Every object is some whole version; verify finds nothing; every data file is named. */
static void check_store(const char *dir, const char *what)
{
    struct memtier_store *st = NULL;
    struct memtier_verify_report v;
    struct memtier_gc_report gc;
    struct err e = {0};
    if (memtier_store_open(dir, MEMTIER_WRITE, &st, &e) != ERR_OK)
        fail_msg("after %s: %s", what, e.msg);
    assert_int_equal(memtier_store_verify(st, NULL, &v, &e), ERR_OK);
    if (v.bad != 0)
        fail_msg("after %s: %s", what, v.first_bad);
    for (size_t i = 0; i < memtier_store_objects(st); i++) {
        const struct memtier_object *o = memtier_store_object_at(st, i);
        uint64_t version = 0;
        struct sample s[3];
        assert_true(o->meta_bytes >= 8);
        memcpy(&version, o->meta, 8);
        object_samples(version, s);
        assert_int_equal(o->segments_count, 3);
        for (size_t k = 0; k < 3; k++)
            assert_true(hash128_equal(o->segments[k].hash, s[k].hash));
    }
    assert_int_equal(memtier_store_gc(st, &gc, &e), ERR_OK);
    uint64_t before = memtier_store_bytes(st);
    assert_int_equal(put_version(st, "check", 3), 0);
    assert_true(memtier_store_bytes(st) >= before);
    memtier_store_close(&st);
    /* Opening has swept what the dead writer left. */
    st = store_must_open(dir, MEMTIER_WRITE);
    assert_int_equal(memtier_store_gc(st, &gc, &e), ERR_OK);
    assert_int_equal(gc.files_removed, 0);
    memtier_store_close(&st);
}

static bool dies_at(const char *dir, long call, enum death how)
{
    pid_t pid = fork();
    if (pid == 0) {
        calls_left = call;
        death = how;
        _exit(script(dir));
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status)) {
        assert_int_equal(WTERMSIG(status), SIGKILL);
        return true;
    }
    assert_int_equal(WEXITSTATUS(status), 0);
    return false;
}

static void death_at_every_call_leaves_a_whole_store(void **state)
{
    (void)state;
    long calls = 0;
    for (enum death how = 0; how < DEATHS; how++) {
        for (long call = 0;; call++) {
            char *dir = test_dir_new(memory_dir()), what[64];
            bool died = dies_at(dir, call, how);
            snprintf(what, sizeof(what), "death %d at call %ld", (int)how, call);
            check_store(dir, what);
            test_dir_remove(&dir);
            calls = BASE_MAX(calls, call);
            if (!died)
                break;
        }
    }
    /* If the calls no longer went through the wrappers the loop would prove nothing. */
    assert_true(calls > 60);
    assert_true(pwrites > 0); /* by check_store, in this process */
}

static void kill_at_random_times_leaves_a_whole_store(void **state)
{
    (void)state;
    uint64_t seed = 20240607;
    struct rng r;
    rng_init(&r, seed);
    char *dir = test_dir_new(memory_dir()), what[64];
    for (int round = 0; round < 40; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct memtier_store *st = NULL;
            struct memtier_gc_report gc;
            struct err e;
            if (memtier_store_open(dir, MEMTIER_WRITE, &st, &e) != ERR_OK)
                _exit(1);
            for (uint64_t v = (uint64_t)round * 100;; v++) {
                char name[8];
                snprintf(name, sizeof(name), "o%d", (int)(v % 5));
                if (put_version(st, name, v) != 0)
                    _exit(2);
                if (v % 7 == 6 && memtier_store_gc(st, &gc, &e) != ERR_OK)
                    _exit(3);
            }
        }
        usleep((useconds_t)rng_below(&r, 40000));
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status = 0;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        snprintf(what, sizeof(what), "seed %lu round %d", (unsigned long)seed, round);
        check_store(dir, what);
    }
    test_dir_remove(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_at_every_call_leaves_a_whole_store),
        cmocka_unit_test(kill_at_random_times_leaves_a_whole_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
