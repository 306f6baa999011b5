/* The service that turns programs and expressions into loaded code: one thread of low priority with
 * a queue. Nothing waits for it but those who ask to; until a unit is loaded, and if it never is,
 * the fused form serves. A program's unit is swapped in by one store, which the node reads once per
 * run. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rdu/emit/emit.h"
#include "rdu/expr/expr.h"
#include "rdu/kernels/kernels.h"

#define QUEUE_MAX 256

struct job {
    struct rdu_program *program; /* or */
    struct rdu_expr *expr;
};

struct rdu_native {
    struct emit_cc cc;
    struct emit_cache cache;
    struct lock lock; /* guards what follows, but objects: the thread's alone */
    pthread_cond_t changed;
    struct job queue[QUEUE_MAX];
    uint32_t head, count;
    bool busy;
    struct rdu_native_stats stats;
    atomic_bool stop;
    pthread_t thread;
    bool started;
    struct emit_object *objects;
    size_t objects_count;
};

/* ---- one unit -------------------------------------------------------------------------------- */

static void note(struct rdu_native *n, uint64_t *counter, const struct err *e)
{
    lock_take(&n->lock);
    (*counter)++;
    if (e)
        snprintf(n->stats.last_error, sizeof(n->stats.last_error), "%.390s", e->msg);
    lock_drop(&n->lock);
}

static enum err_code compile(struct rdu_native *n, struct hash128 key, const struct buf *text,
                             struct emit_object *ret, struct err *e)
{
    struct buf object = {0};
    struct err not_stored = {0};
    uint64_t start = clock_ns();
    enum err_code rc = emit_cc_run(&n->cc, n->cache.dir, text, &n->stop, &object, e);
    lock_take(&n->lock);
    n->stats.compile_ns += clock_ns() - start;
    lock_drop(&n->lock);
    if (rc == ERR_OK) {
        note(n, &n->stats.compiled, NULL);
        if (emit_cache_store(&n->cache, key, &object, &not_stored) != ERR_OK)
            note(n, &n->stats.not_stored, &not_stored);
        rc = emit_load_bytes(&object, ret, e);
    }
    buf_done(&object);
    return rc;
}

/* The address of `symbol` in the unit of `text`: from the cache, else compiled. The unit carries
 * its own key, so that whatever happens to files, code of another text is never taken for it. */
static enum err_code load(struct rdu_native *n, struct buf *text, const char *symbol, void **ret,
                          struct err *e)
{
    struct hash128 key = emit_key(&n->cc, text);
    struct emit_object object = {NULL, -1};
    struct err cached = {0};
    char hex[33];
    hash128_format(key, hex);
    buf_printf(text, "__attribute__((visibility(\"default\"))) const char sy_key[] = \"%s\";\n",
               hex);
    enum err_code rc = emit_cache_load(&n->cache, key, &object, &cached);
    if (rc != ERR_OK)
        note(n, &n->stats.rejected, &cached);
    rc = ERR_OK;
    if (object.handle)
        note(n, &n->stats.cache_hits, NULL);
    else
        rc = compile(n, key, text, &object, e);
    if (rc != ERR_OK)
        return rc;
    const char *found = dlsym(object.handle, "sy_key");
    *ret = dlsym(object.handle, symbol);
    if (*ret == NULL || found == NULL || strcmp(found, hex) != 0) {
        emit_unload(&object);
        return err_set(e, ERR_CORRUPT, "a loaded object is not the one it should be");
    }
    n->objects = mem_grow(n->objects, n->objects_count + 1, sizeof(*n->objects));
    n->objects[n->objects_count++] = object;
    return ERR_OK;
}

static enum err_code load_program(struct rdu_native *n, struct rdu_program *p, struct err *e)
{
    struct buf text = {0};
    void *symbol = NULL;
    enum err_code rc = emit_program(p, &text, e);
    if (rc == ERR_OK)
        rc = load(n, &text, "sy_unit", &symbol, e);
    if (rc == ERR_OK)
        atomic_store(&p->native, (const struct sy_unit *)symbol);
    buf_done(&text);
    return rc;
}

static enum err_code load_expr(struct rdu_native *n, struct rdu_expr *x, struct err *e)
{
    struct buf text = {0};
    void *symbol = NULL;
    emit_expr(x, &text);
    enum err_code rc = load(n, &text, "sy_expr", &symbol, e);
    if (rc == ERR_OK)
        atomic_store(&x->native, symbol);
    buf_done(&text);
    return rc;
}

static enum err_code run_job(struct rdu_native *n, const struct job *j, struct err *e)
{
    enum err_code rc = j->program ? load_program(n, j->program, e) : load_expr(n, j->expr, e);
    if (rc != ERR_OK && rc != ERR_CANCELLED)
        note(n, &n->stats.failed, e);
    return rc;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static bool next_job(struct rdu_native *n, struct job *ret)
{
    lock_take(&n->lock);
    n->busy = false;
    pthread_cond_broadcast(&n->changed);
    while (n->count == 0 && !atomic_load(&n->stop))
        pthread_cond_wait(&n->changed, &n->lock.mutex);
    bool some = n->count > 0 && !atomic_load(&n->stop);
    if (some) {
        *ret = n->queue[n->head];
        n->head = (n->head + 1) % QUEUE_MAX;
        n->count--;
        n->busy = true;
    }
    lock_drop(&n->lock);
    return some;
}

static void *native_main(void *arg)
{
    struct rdu_native *n = arg;
    struct job j;
    /* Linux keeps niceness per thread and hands it to children: the compiler is as low as we are.
     */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    while (next_job(n, &j)) {
        struct err e = {0};
        if (run_job(n, &j, &e) != ERR_OK)
            continue; /* counted, its reason kept: stats say it */
    }
    return NULL;
}

static enum err_code submit(struct rdu_native *n, struct job j, struct err *e)
{
    enum err_code rc = ERR_OK;
    lock_take(&n->lock);
    if (n->count == QUEUE_MAX) {
        rc = err_set(e, ERR_QUEUE_FULL, "%d units wait for the compiler", QUEUE_MAX);
    } else {
        n->queue[(n->head + n->count++) % QUEUE_MAX] = j;
        n->busy = true;
        pthread_cond_broadcast(&n->changed);
    }
    lock_drop(&n->lock);
    return rc;
}

enum err_code rdu_native_submit(struct rdu_native *n, struct rdu_program *p, struct err *e)
{
    if (p->opt.exec != RDU_EXEC_NATIVE)
        return err_set(e, ERR_INVALID, "a program opened as %s is not to be compiled",
                       p->opt.exec == RDU_EXEC_INTERP ? "interp" : "fused or unfused");
    return submit(n, (struct job){.program = p}, e);
}

enum err_code rdu_native_submit_expr(struct rdu_native *n, struct rdu_expr *x, struct err *e)
{
    return submit(n, (struct job){.expr = x}, e);
}

void rdu_native_wait(struct rdu_native *n)
{
    lock_take(&n->lock);
    while (n->busy || n->count > 0)
        pthread_cond_wait(&n->changed, &n->lock.mutex);
    lock_drop(&n->lock);
}

bool rdu_program_is_native(const struct rdu_program *p)
{
    return atomic_load(&((struct rdu_program *)(uintptr_t)p)->native) != NULL;
}

bool rdu_expr_is_native(const struct rdu_expr *x)
{
    return atomic_load(&((struct rdu_expr *)(uintptr_t)x)->native) != NULL;
}

/* ---- open and close -------------------------------------------------------------------------- */

enum err_code rdu_native_open(const struct rdu_native_options *opt, struct rdu_native **ret,
                              struct err *e)
{
    struct rdu_kernels k;
    enum err_code rc = rdu_kernels_init(&k, opt->cpu, e);
    if (rc == ERR_OK)
        rc = file_mkdirs(opt->dir, e);
    if (rc != ERR_OK)
        return rc;
    chmod(opt->dir,
          0700); /* what we load from is nobody else's to write; each object is checked as well */
    struct rdu_native *n = mem_alloc(sizeof(*n));
    emit_cc_init(&n->cc, opt->compiler, k.isa, opt->timeout_ms ? opt->timeout_ms : 60000);
    n->cache =
        (struct emit_cache){mem_strdup(opt->dir), opt->max_bytes ? opt->max_bytes : 64 * BASE_MIB};
    lock_init(&n->lock, LOCK_RANK_NODE, "native");
    pthread_cond_init(&n->changed, NULL);
    rc = thread_start(&n->thread, "native", native_main, n, e);
    n->started = rc == ERR_OK;
    if (rc != ERR_OK) {
        rdu_native_close(&n);
        return rc;
    }
    *ret = n;
    return ERR_OK;
}

void rdu_native_close(struct rdu_native **np)
{
    struct rdu_native *n = *np;
    if (n == NULL)
        return;
    lock_take(&n->lock);
    atomic_store(&n->stop, true);
    pthread_cond_broadcast(&n->changed);
    lock_drop(&n->lock);
    if (n->started)
        thread_join(n->thread);
    for (size_t i = 0; i < n->objects_count; i++)
        emit_unload(&n->objects[i]);
    free(n->objects);
    pthread_cond_destroy(&n->changed);
    lock_done(&n->lock);
    emit_cc_done(&n->cc);
    free(n->cache.dir);
    free(n);
    *np = NULL;
}

void rdu_native_stats(struct rdu_native *n, struct rdu_native_stats *ret)
{
    lock_take(&n->lock);
    *ret = n->stats;
    ret->waiting = n->count + n->busy;
    lock_drop(&n->lock);
}

const char *rdu_native_compiler(const struct rdu_native *n)
{
    return n->cc.path;
}
