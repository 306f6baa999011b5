/* The loaders: each one forced, each reason to fall back made real, and every way a read can go
 * wrong. */
#include "support.h"

#include "memtier/residency.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SEGMENTS 12
#define MIB ((uint64_t)1 << 20)
static char *dir;
static struct sample samples[SEGMENTS];

/* ---- calls that are bent (see meson.build) ---- */

static _Atomic bool refuse_direct, bend_preads;
static _Atomic unsigned preads;
/* The C library's names with and without 64-bit offsets; which one is called is the build's choice.
 */
#define BENT(open_name, pread_name)                                                                \
    int __real_##open_name(const char *path, int flags, ...);                                      \
    int __wrap_##open_name(const char *path, int flags, mode_t mode);                              \
    int __wrap_##open_name(const char *path, int flags, mode_t mode)                               \
    {                                                                                              \
        if (refuse_direct && (flags & O_DIRECT) != 0) {                                            \
            errno = EINVAL;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        return __real_##open_name(path, flags, mode);                                              \
    }                                                                                              \
    ssize_t __real_##pread_name(int fd, void *dst, size_t len, off_t at);                          \
    ssize_t __wrap_##pread_name(int fd, void *dst, size_t len, off_t at);                          \
    ssize_t __wrap_##pread_name(int fd, void *dst, size_t len, off_t at)                           \
    {                                                                                              \
        if (bend_preads && bend(&len))                                                             \
            return -1;                                                                             \
        return __real_##pread_name(fd, dst, len, at);                                              \
    }

/* True: fail with errno. Else perhaps a shorter read. */
static bool bend(size_t *len)
{
    unsigned n = preads++;
    if (n % 5 == 1) {
        errno = n % 2 ? EINTR : EAGAIN;
        return true;
    }
    if (n % 3 == 0 && *len > 8192)
        *len = *len / 2 / 4096 * 4096;
    return false;
}
BENT(open, pread)
BENT(open64, pread64)

static void fill_store(const char *where)
{
    struct memtier_store *st = store_must_open(where, MEMTIER_WRITE);
    sample_write(st, "set/a", samples, 6);
    sample_write(st, "set/b", samples + 6, 6);
    memtier_store_close(&st);
}

static int make_store(void **state)
{
    (void)state;
    static const size_t sizes[] = {5000000, 2097152, 100, 4096, 2097153, 700000};
    for (size_t i = 0; i < SEGMENTS; i++)
        sample_init(&samples[i], 50 + i, sizes[i % 6]);
    dir = test_dir_new(NULL);
    fill_store(dir);
    return 0;
}

static int remove_store(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

/* Load everything twice with evictions in between; the data must be right each time. */
static void use_tiers(struct memtier *m)
{
    for (int round = 0; round < 2; round++) {
        tiers_check(m, samples, 6, 1);
        tiers_check(m, samples + 6, 6, 2);
    }
}

static void each_loader_can_be_forced(void **state)
{
    (void)state;
    static const char *const words[] = {"", "io_uring", "preads (direct", "preads (buffered)"};
    for (enum memtier_loader k = MEMTIER_LOADER_AUTO; k <= MEMTIER_LOADER_BUFFERED; k++) {
        struct memtier_options opt = {.hbm_bytes = 20 * MIB, .loader = k};
        struct memtier_store *st = store_must_open(dir, MEMTIER_SERVE);
        struct memtier *m = NULL;
        struct err e = {0};
        enum err_code rc = memtier_open(&opt, st, &m, &e);
        if (rc == ERR_UNSUPPORTED && k == MEMTIER_LOADER_URING) {
            print_message("io_uring is not allowed here: %s\n", e.msg);
        } else {
            assert_int_equal(rc, ERR_OK);
            print_message("%s\n", memtier_loader_text(m));
            assert_non_null(strstr(memtier_loader_text(m), words[k]));
            use_tiers(m);
        }
        memtier_close(&m);
        memtier_store_close(&st);
    }
}

static void direct_reads_may_be_refused(void **state)
{
    (void)state;
    refuse_direct = true;
    for (enum memtier_loader k = MEMTIER_LOADER_AUTO; k <= MEMTIER_LOADER_PREAD; k++) {
        struct memtier_options opt = {.hbm_bytes = 20 * MIB, .loader = k};
        struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
        struct memtier *m = NULL;
        struct err e;
        if (memtier_open(&opt, st, &m, &e) == ERR_OK) {
            assert_non_null(strstr(memtier_loader_text(m), "refuses direct reads"));
            use_tiers(m);
        }
        assert_true(m != NULL || k == MEMTIER_LOADER_URING);
        memtier_close(&m);
        memtier_store_close(&st);
    }
    refuse_direct = false;
}

static void short_and_interrupted_reads_go_on(void **state)
{
    (void)state;
    bend_preads = true;
    struct memtier_options opt = {.hbm_bytes = 20 * MIB, .loader = MEMTIER_LOADER_PREAD};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    preads = 0;
    struct memtier *m = tiers_must_open(&opt, st);
    use_tiers(m);
    memtier_close(&m);
    bend_preads = false;
    assert_true(preads > 20);
    memtier_store_close(&st);
}

/* ---- in containers io_uring is often forbidden ---- */

static bool forbid_io_uring(int how)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)how),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = BASE_COUNT(code), .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

/* In a child: load everything, compare, by exit code. */
static int load_all(struct memtier *m)
{
    uint32_t segs[SEGMENTS];
    struct memtier_lease *l;
    struct err e;
    for (size_t i = 0; i < SEGMENTS; i++)
        segs[i] = memtier_find(m, samples[i].hash);
    if (memtier_reserve(m, segs, SEGMENTS, 1, &l, &e) != ERR_OK || !lease_wait(m, l))
        return 30;
    for (size_t i = 0; i < SEGMENTS; i++) {
        if (!sample_matches(&samples[i], memtier_ptr(m, segs[i])))
            return 31;
    }
    memtier_release(m, &l);
    return 0;
}

static int without_io_uring(void *arg)
{
    struct memtier_options opt = {.hbm_bytes = 32 * MIB};
    struct memtier_store *st = NULL;
    struct memtier *m = NULL;
    struct err e;
    if (!forbid_io_uring(*(int *)arg))
        return 77;
    if (memtier_store_open(dir, MEMTIER_READ, &st, &e) != ERR_OK)
        return 1;
    opt.loader = MEMTIER_LOADER_URING;
    if (memtier_open(&opt, st, &m, &e) != ERR_UNSUPPORTED || strstr(e.msg, "use auto") == NULL)
        return 2;
    opt.loader = MEMTIER_LOADER_AUTO;
    if (memtier_open(&opt, st, &m, &e) != ERR_OK)
        return 3;
    if (strstr(memtier_loader_text(m), "preads") == NULL ||
        strstr(memtier_loader_text(m), "io_uring cannot be used") == NULL)
        return 4;
    int rc = load_all(m);
    memtier_close(&m);
    memtier_store_close(&st);
    return rc;
}

static void forbidden_io_uring_falls_back_and_says_so(void **state)
{
    (void)state;
    int how[] = {EPERM, ENOSYS};
    for (size_t i = 0; i < 2; i++) {
        int rc = in_child(without_io_uring, &how[i]);
        if (rc == 77)
            skip();
        assert_int_equal(rc, 0);
    }
}

/* ---- RLIMIT_MEMLOCK ---- */

static bool become_nobody(uint64_t memlock)
{
    struct rlimit lim = {memlock, memlock};
    if (setrlimit(RLIMIT_MEMLOCK, &lim) != 0)
        return false;
    return geteuid() != 0 || (setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
}

static int with_small_memlock(void *arg)
{
    (void)arg;
    struct memtier_options opt = {.hbm_bytes = 64 * MIB};
    struct memtier_store *st = NULL;
    struct memtier *m = NULL;
    struct err e = {0};
    if (!become_nobody(8 * MIB))
        return 77;
    if (memtier_store_open(dir, MEMTIER_READ, &st, &e) != ERR_OK)
        return 1;
    if (memtier_open(&opt, st, &m, &e) != ERR_OK)
        return 2;
    const char *text = memtier_loader_text(m);
    if (strstr(text, "io_uring (") != NULL && strstr(text, "LimitMEMLOCK=") == NULL)
        return 3;
    int rc = load_all(m);
    memtier_close(&m);
    memtier_store_close(&st);
    return rc;
}

static int load_each(struct memtier *m)
{
    for (size_t i = 0; i < SEGMENTS; i++) {
        uint32_t seg = memtier_find(m, samples[i].hash);
        struct memtier_lease *l;
        struct err e;
        if (memtier_reserve(m, &seg, 1, 1, &l, &e) != ERR_OK || !lease_wait(m, l) ||
            !sample_matches(&samples[i], memtier_ptr(m, seg)))
            return 32;
        memtier_release(m, &l);
    }
    return 0;
}

/* The limit holds one pool but not two: the second learns it from the kernel. */
static int with_memlock_for_one(void *arg)
{
    (void)arg;
    struct memtier_options opt = {.hbm_bytes = 6 * MIB};
    struct memtier_store *st = NULL;
    struct memtier *a = NULL, *b = NULL;
    struct err e = {0};
    if (!become_nobody(8 * MIB))
        return 77;
    if (memtier_store_open(dir, MEMTIER_READ, &st, &e) != ERR_OK ||
        memtier_open(&opt, st, &a, &e) != ERR_OK || memtier_open(&opt, st, &b, &e) != ERR_OK)
        return 1;
    bool uring = strstr(memtier_loader_text(a), "registered") != NULL;
    uint64_t until = clock_ns() + 20000000000ull;
    while (uring && clock_ns() < until && strstr(memtier_loader_text(a), "LimitMEMLOCK=") == NULL &&
           strstr(memtier_loader_text(b), "LimitMEMLOCK=") == NULL)
        usleep(2000);
    if (uring && clock_ns() >= until)
        return 2;
    int rc = load_each(a);
    rc = rc == 0 ? load_each(b) : rc;
    memtier_close(&a);
    memtier_close(&b);
    memtier_store_close(&st);
    return rc;
}

static void a_small_memlock_limit_is_enough(void **state)
{
    (void)state;
    assert_int_equal(chmod(dir, 0755), 0);
    int rc = in_child(with_small_memlock, NULL);
    if (rc != 77)
        assert_int_equal(rc, 0);
    int rc2 = in_child(with_memlock_for_one, NULL);
    if (rc2 != 77)
        assert_int_equal(rc2, 0);
    if (rc == 77 || rc2 == 77)
        skip(); /* the hard limit is lower already, and only root may raise it */
}

/* ---- reads that fail ---- */

struct faults {
    _Atomic long left; /* reads until the fault; negative: done */
    _Atomic bool always;
    _Atomic uint64_t from, to; /* file offsets that always fail */
    _Atomic long calls;
};

static int fault(void *ctx, uint64_t offset, size_t bytes)
{
    struct faults *f = ctx;
    (void)bytes;
    f->calls++;
    if (offset >= f->from && offset < f->to)
        return ENXIO;
    return f->left-- == 0 ? EIO : 0;
}

static void a_fault_at_any_read_is_retried(void **state)
{
    (void)state;
    long reads = 0;
    for (long k = 0;; k++) {
        struct faults f = {.left = k};
        struct memtier_options opt = {.hbm_bytes = 32 * MIB,
                                      .loader = k % 2 ? MEMTIER_LOADER_AUTO : MEMTIER_LOADER_PREAD,
                                      .fault = fault,
                                      .fault_ctx = &f};
        struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
        struct memtier *m = tiers_must_open(&opt, st);
        struct memtier_stats s;
        tiers_check(m, samples, SEGMENTS, 1);
        memtier_stats(m, &s);
        assert_int_equal(s.failed, 0);
        assert_int_equal(s.load_retries, f.left < 0 ? 1 : 0);
        bool happened = f.left < 0;
        memtier_close(&m);
        memtier_store_close(&st);
        if (!happened)
            break;
        reads = k;
    }
    assert_true(reads >= SEGMENTS);
}

static enum err_code try_object(struct memtier *m, size_t first, struct err *e)
{
    uint32_t segs[6];
    struct memtier_lease *l;
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < 6; i++)
        segs[i] = memtier_find(m, samples[first + i].hash);
    if (memtier_reserve(m, segs, 6, 1, &l, e) != ERR_OK)
        return e->code;
    if (!lease_wait(m, l)) {
        assert_false(memtier_lease_ok(l, e));
        rc = e->code;
    }
    memtier_release(m, &l);
    return rc;
}

static void a_lasting_fault_fails_with_its_reason_until_it_is_gone(void **state)
{
    (void)state;
    struct faults f = {.left = -1};
    struct memtier_options opt = {.hbm_bytes = 40 * MIB, .fault = fault, .fault_ctx = &f};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_stats s;
    struct err e = {0};
    uint32_t second = memtier_find(m, samples[1].hash);
    f.from = 5001216; /* the second segment, in both files */
    f.to = f.from + 1;
    assert_int_equal(try_object(m, 0, &e), ERR_LOAD_FAILED);
    assert_non_null(strstr(e.msg, "set_a.seg"));
    assert_non_null(strstr(e.msg, "No such device or address"));
    assert_int_equal(memtier_where(m, second), MEMTIER_NVME);
    assert_true(memtier_failure(m, second, &e));
    tiers_settle(m);
    memtier_stats(m, &s);
    assert_int_equal(s.failed, 1);
    assert_int_equal(s.load_retries, 3);
    assert_int_equal(s.hbm_pinned, 0);
    f.to = f.from;
    assert_int_equal(try_object(m, 0, &e), ERR_OK);
    assert_false(memtier_failure(m, second, &e));
    assert_int_equal(try_object(m, 6, &e), ERR_OK);
    memtier_close(&m);
    memtier_store_close(&st);
}

static void damaged_files_fail_their_object_only(void **state)
{
    (void)state;
    char *own = test_dir_new(NULL);
    fill_store(own);
    char *path = test_data_file(own, 0), *aside = test_path(own, "aside");
    struct memtier_options opt = {.hbm_bytes = 20 * MIB};
    struct memtier_store *st = store_must_open(own, MEMTIER_SERVE);
    struct memtier *m = tiers_must_open(&opt, st);
    struct err e = {0};
    struct stat full;
    assert_int_equal(stat(path, &full), 0);
    tiers_check(m, samples, SEGMENTS / 2, 1);
    struct {
        const char *what, *text;
        int code;
    } cases[] = {
        {"vanished", "No such file", 0}, {"cut", "shorter than", 0}, {"changed", "damaged", 0}};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK); /* everything out */
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 20 * MIB, &e), ERR_OK);
        tiers_settle(m);
        assert_int_equal(rename(path, aside), 0);
        if (i > 0) { /* a file of the same name that is another */
            struct buf copy = {0};
            assert_int_equal(file_read(aside, 64 << 20, &copy, &e), ERR_OK);
            copy.data[3] ^= 1;
            size_t len = i == 1 ? copy.len / 2 : copy.len;
            assert_int_equal(file_write_atomic(path, copy.data, len, &e), ERR_OK);
            buf_done(&copy);
        }
        /* The loader still has the good file open until an attempt fails or it is told. */
        memtier_close(&m);
        m = tiers_must_open(&opt, st);
        assert_int_equal(try_object(m, 0, &e), ERR_LOAD_FAILED);
        if (strstr(e.msg, cases[i].text) == NULL)
            fail_msg("%s: %s", cases[i].what, e.msg);
        assert_int_equal(try_object(m, 6, &e), ERR_OK);
        assert_int_equal(rename(aside, path), 0);
        assert_int_equal(try_object(m, 0, &e), ERR_OK);
    }
    memtier_close(&m);
    memtier_store_close(&st);
    free(path);
    free(aside);
    test_dir_remove(&own);
}

static void verify_modes_do_what_they_say(void **state)
{
    (void)state;
    char *own = test_dir_new(NULL);
    fill_store(own);
    char *path = test_data_file(own, 0);
    struct err e = {0};
    for (enum memtier_verify v = MEMTIER_VERIFY_ALWAYS; v <= MEMTIER_VERIFY_NEVER; v++) {
        struct memtier_options opt = {.hbm_bytes = 20 * MIB, .verify = v};
        struct memtier_store *st = store_must_open(own, MEMTIER_SERVE);
        struct memtier *m = tiers_must_open(&opt, st);
        assert_int_equal(try_object(m, 0, &e), ERR_OK);
        assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 20 * MIB, &e), ERR_OK);
        int fd = open(path, O_RDWR);
        char byte;
        assert_int_equal(pread(fd, &byte, 1, 100), 1);
        byte = (char)(byte ^ 1);
        assert_int_equal(pwrite(fd, &byte, 1, 100), 1);
        assert_int_equal(fsync(fd), 0);
        assert_int_equal(try_object(m, 0, &e),
                         v == MEMTIER_VERIFY_ALWAYS ? ERR_LOAD_FAILED : ERR_OK);
        memtier_close(&m);
        m = tiers_must_open(&opt, st);
        assert_int_equal(try_object(m, 0, &e),
                         v == MEMTIER_VERIFY_NEVER ? ERR_OK : ERR_LOAD_FAILED);
        memtier_close(&m);
        byte = (char)(byte ^ 1);
        assert_int_equal(pwrite(fd, &byte, 1, 100), 1);
        close(fd);
        memtier_store_close(&st);
    }
    free(path);
    test_dir_remove(&own);
}

/* ---- more loads than the rings hold ---- */

static void loads_beyond_the_rings_wait_their_turn(void **state)
{
    (void)state;
    enum { MANY = JOBS_MAX + 200 };
    char *own = test_dir_new(NULL);
    struct memtier_store *st = store_must_open(own, MEMTIER_WRITE);
    struct sample *s = mem_array(MANY, sizeof(*s));
    uint32_t *segs = mem_array(MANY, sizeof(*segs));
    struct memtier_lease *l;
    struct err e;
    for (size_t i = 0; i < MANY; i++)
        sample_init(&s[i], 100000 + i, 16);
    sample_write(st, "many", s, MANY);
    struct memtier_options opt = {.hbm_bytes = (uint64_t)MANY * 65536};
    struct memtier *m = tiers_must_open(&opt, st);
    pool_populate_stop(&m->hbm); /* only one page of each granule is used */
    for (size_t i = 0; i < MANY; i++)
        segs[i] = memtier_find(m, s[i].hash);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(memtier_reserve(m, segs, MANY, 1, &l, &e), ERR_OK);
        assert_non_null(m->waiting);
        memtier_release(m, &l);
        assert_null(m->waiting);
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, opt.hbm_bytes, &e), ERR_OK);
    }
    tiers_check(m, s, MANY, 2);
    memtier_close(&m);
    memtier_store_close(&st);
    free(s);
    free(segs);
    test_dir_remove(&own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_loader_can_be_forced),
        cmocka_unit_test(direct_reads_may_be_refused),
        cmocka_unit_test(short_and_interrupted_reads_go_on),
        cmocka_unit_test(forbidden_io_uring_falls_back_and_says_so),
        cmocka_unit_test(a_small_memlock_limit_is_enough),
        cmocka_unit_test(a_fault_at_any_read_is_retried),
        cmocka_unit_test(a_lasting_fault_fails_with_its_reason_until_it_is_gone),
        cmocka_unit_test(damaged_files_fail_their_object_only),
        cmocka_unit_test(verify_modes_do_what_they_say),
        cmocka_unit_test(loads_beyond_the_rings_wait_their_turn),
    };
    return cmocka_run_group_tests(tests, make_store, remove_store);
}
