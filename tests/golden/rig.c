#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/golden/rig.h"

static void must(enum err_code code, const struct err *e, const char *what)
{
    if (code != ERR_OK)
        fail_msg("%s: %s", what, e->msg);
}

static void set(struct conf *c, const char *key, const char *value)
{
    struct err e = {0};
    if (value)
        must(conf_set(c, key, value, &e), &e, key);
}

static void add(struct memtier_store *store, const char *path, const char *name, const char *base, double scale)
{
    struct err e = {0};
    struct expert_add_report report;
    struct expert_add_options o = {.path = path, .name = name, .base = base, .scale = scale};
    must(experts_add(store, &o, NULL, &report, &e), &e, path);
}

static void fill_store(struct rig *r, const struct rig_options *o, char *top)
{
    struct err e = {0};
    struct memtier_store *store = NULL;
    must(memtier_store_open(r->dir, MEMTIER_WRITE, &store, &e), &e, r->dir);
    strcpy(top, "model");
    add(store, o->model, "model", NULL, 0);
    for (int i = 0; i < 4 && o->adapters[i]; i++) {
        char name[16];
        snprintf(name, sizeof(name), "adapter-%d", i);
        add(store, o->adapters[i], name, top, o->scales[i]);
        strcpy(top, name);
    }
    memtier_store_close(&store);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw);
static char cache[64];

static void remove_cache(void)
{
    nftw(cache, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* One for the process: a program met again is not compiled again. */
static const char *cache_dir(void)
{
    if (cache[0] == 0) {
        strcpy(cache, "/tmp/switchyard-objects-XXXXXX");
        assert_non_null(mkdtemp(cache));
        atexit(remove_cache);
    }
    return cache;
}

/* Compiled form in place, or the test fails: a machine without a compiler skips it before. */
static void wait_native(struct rig *r)
{
    struct rdu_native_stats stats;
    if (r->conf.rdu_exec != CONF_EXEC_NATIVE)
        return;
    if (r->stack.native == NULL)
        fail_msg("native: %s", r->stack.native_said.msg);
    rdu_native_wait(r->stack.native);
    rdu_native_stats(r->stack.native, &stats);
    if (stats.failed + stats.rejected + stats.not_stored > 0 ||
        stats.compiled + stats.cache_hits == 0)
        fail_msg("native: %s", stats.last_error);
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    char top[16], sockets[16], threads[16];
    struct err e = {0};
    *r = (struct rig){0};
    strcpy(r->dir, "/tmp/switchyard-golden-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    fill_store(r, o, top);
    conf_init(&r->conf);
    snprintf(sockets, sizeof(sockets), "%u", o->sockets ? o->sockets : 8);
    snprintf(threads, sizeof(threads), "%u", o->threads ? o->threads : 1);
    set(&r->conf, "store.path", r->dir);
    set(&r->conf, "rdu.exec", o->exec);
    set(&r->conf, "rdu.numerics", o->numerics);
    set(&r->conf, "kv.type", o->kv);
    set(&r->conf, "rdu.cache", cache_dir());
    set(&r->conf, "tiers.hbm", o->hbm);
    set(&r->conf, "rdu.sockets", sockets);
    set(&r->conf, "rdu.threads", threads);
    if (o->cpu)
        setenv("SWITCHYARD_CPU", o->cpu, 1);
    must(stack_open(&r->conf, MEMTIER_READ, &r->stack, &e), &e, "open");
    if (o->cpu)
        unsetenv("SWITCHYARD_CPU");
    wait_native(r);
    r->expert = experts_find(r->stack.experts, top);
    assert_non_null(r->expert);
    if (!expert_ok(r->expert, &e))
        fail_msg("%s: %s", top, e.msg);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void rig_close(struct rig *r)
{
    stack_close(&r->stack);
    conf_done(&r->conf);
    nftw(r->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

char *rig_fixture(const char *name)
{
    const char *shared = getenv("SWITCHYARD_SHARED"), *source = getenv("SWITCHYARD_SOURCE");
    char *path = mem_format("%s/tests/data/%s", source ? source : ".", name);
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    path = mem_format("%s/fixtures/%s", shared ? shared : "../shared", name);
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    print_message("skipped: fixture %s is not here (SWITCHYARD_SHARED names the folder of shared data)\n",
                  name);
    return NULL;
}

json_t *rig_jsonl(const char *name)
{
    char *path = rig_fixture(name), *line = NULL;
    size_t cap = 0;
    if (path == NULL)
        return NULL;
    FILE *f = fopen(path, "r");
    json_t *all = json_array();
    while (f && getline(&line, &cap, f) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        if (row)
            json_array_append_new(all, row);
    }
    fclose(f);
    free(line);
    free(path);
    return all;
}

size_t rig_ids(json_t *array, int32_t *ids, size_t cap)
{
    size_t n = json_array_size(array);
    assert_true(n <= cap);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n;
}

size_t rig_vocab(const struct rig *r)
{
    return rdu_program_vocab(expert_program(r->expert));
}

float *rig_logits(struct rig *r, const int32_t *ids, size_t count, uint32_t chunk)
{
    struct err e = {0};
    float *logits = mem_array(count * rig_vocab(r), sizeof(float));
    must(experts_logits(r->stack.experts, r->expert, ids, count, true, chunk, logits, &e), &e, "logits");
    return logits;
}

double logsumexp(const float *x, size_t n)
{
    double best = (double)x[argmax(x, n)], sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - best);
    return best + log(sum);
}

size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}
