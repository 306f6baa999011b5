#include "support.h"

#include <dirent.h>
#include <ftw.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

char *test_dir_new(const char *parent)
{
    const char *tmp = parent != NULL ? parent : getenv("TMPDIR");
    char *dir = mem_format("%s/switchyard-memtier-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(dir) == NULL)
        fail_msg("cannot make %s", dir);
    return dir;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void test_dir_remove(char **dir)
{
    if (*dir != NULL)
        (void)nftw(*dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(*dir);
    *dir = NULL;
}

char *test_path(const char *dir, const char *name)
{
    return mem_format("%s/%s", dir, name);
}

static int visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

char *test_data_file(const char *dir, size_t n)
{
    char *data = test_path(dir, "data"), *found = NULL;
    struct dirent **list = NULL;
    int count = scandir(data, &list, visible, alphasort);
    for (int i = 0; i < count; i++) {
        if ((size_t)i == n)
            found = test_path(data, list[i]->d_name);
        free(list[i]);
    }
    free(list);
    free(data);
    return found;
}

size_t test_data_files(const char *dir)
{
    size_t n = 0;
    for (char *path = test_data_file(dir, 0); path != NULL; path = test_data_file(dir, n)) {
        free(path);
        n++;
    }
    return n;
}

void sample_fill(const struct sample *s, void *dst)
{
    struct rng r;
    unsigned char *p = dst;
    rng_init(&r, s->seed);
    for (size_t at = 0; at < s->bytes; at += 8) {
        uint64_t v = rng_u64(&r);
        memcpy(p + at, &v, BASE_MIN(s->bytes - at, sizeof(v)));
    }
}

void sample_init(struct sample *s, uint64_t seed, size_t bytes)
{
    s->seed = seed;
    s->bytes = bytes;
    void *data = mem_alloc(bytes);
    sample_fill(s, data);
    s->hash = hash128_of(data, bytes, 0);
    free(data);
}

bool sample_matches(const struct sample *s, const void *data)
{
    return hash128_equal(hash128_of(data, s->bytes, 0), s->hash);
}

void sample_write(struct memtier_store *store, const char *name, const struct sample *s,
                  size_t count)
{
    struct memtier_writer *w = NULL;
    struct err e = {0};
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += s[i].bytes;
    if (memtier_writer_open(store, name, total, &w, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    for (size_t i = 0; i < count; i++) {
        void *data = mem_alloc(s[i].bytes);
        sample_fill(&s[i], data);
        if (memtier_writer_add(w, MEMTIER_KIND_LAYER, data, s[i].bytes, NULL, &e) != ERR_OK)
            fail_msg("%s", e.msg);
        free(data);
    }
    char *meta = mem_format("meta of %s", name);
    if (memtier_writer_commit(&w, meta, strlen(meta), &e) != ERR_OK)
        fail_msg("%s", e.msg);
    free(meta);
}

struct memtier_store *store_must_open(const char *dir, enum memtier_access access)
{
    struct memtier_store *s = NULL;
    struct err e = {0};
    if (memtier_store_open(dir, access, &s, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return s;
}

struct memtier *tiers_must_open(const struct memtier_options *opt, struct memtier_store *store)
{
    struct memtier *m = NULL;
    struct err e = {0};
    if (memtier_open(opt, store, &m, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return m;
}

static void wait_fd(struct memtier *m)
{
    struct pollfd p = {.fd = memtier_fd(m), .events = POLLIN};
    (void)poll(&p, 1, 100);
    memtier_poll(m);
}

bool lease_wait(struct memtier *m, struct memtier_lease *l)
{
    uint64_t until = clock_ns() + 60u * 1000000000ull, bytes = memtier_lease_load_bytes(l);
    struct err e;
    memtier_poll(m);
    while (memtier_lease_ready_ns(l) == 0 || bytes == 0) {
        if (!memtier_lease_ok(l, &e))
            return false;
        if (bytes == 0)
            return true; /* everything was resident; the clock of the test may be 0 */
        if (clock_ns() > until)
            fail_msg("a lease did not become ready within a minute");
        wait_fd(m);
    }
    return true;
}

void tiers_settle(struct memtier *m)
{
    struct memtier_stats s;
    uint64_t until = clock_ns() + 60u * 1000000000ull;
    do {
        struct pollfd p = {.fd = memtier_fd(m), .events = POLLIN};
        memtier_poll(m);
        (void)poll(&p, 1, 20);
        memtier_poll(m);
        memtier_stats(m, &s);
    } while (s.jobs_out + s.writes_out > 0 && clock_ns() < until);
}

void tiers_check(struct memtier *m, const struct sample *s, size_t count, uint64_t now_ns)
{
    uint32_t *segs = mem_array(count, sizeof(*segs));
    struct memtier_lease *l = NULL;
    struct err e = {0};
    for (size_t i = 0; i < count; i++) {
        segs[i] = memtier_find(m, s[i].hash);
        assert_int_not_equal(segs[i], UINT32_MAX);
    }
    if (memtier_reserve(m, segs, count, now_ns, &l, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    if (!lease_wait(m, l)) {
        (void)memtier_lease_ok(l, &e);
        fail_msg("%s", e.msg);
    }
    assert_int_equal(memtier_lease_ready(l), count);
    for (size_t i = 0; i < count; i++)
        assert_true(sample_matches(&s[i], memtier_ptr(m, segs[i])));
    memtier_release(m, &l);
    free(segs);
}

int in_child(int (*fn)(void *arg), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(fn(arg));
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 255;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
