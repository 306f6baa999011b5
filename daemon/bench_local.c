/* Switches and loads in this process: the daemon's engine over a store, without HTTP. Every pair is
 * measured together, alternating with the device or memcpy, so that what else the machine does
 * meets both sides. */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/bench_switch.h"
#include "daemon/engine_order.h"
#include "daemon/stack.h"

#define COPY_THREADS_MAX 16

/* Much in flight, whatever the loader does: the device at its best. */
static const struct memtier_shape device_shape = {2u << 20, 16};

struct local {
    struct bench_switch *b;
    struct stack stack;
    struct engine *engine;
    struct expert **experts; /* [b->experts] */
    struct bench_pattern pattern;
    struct memtier_device *device; /* NULL = no direct reads here */
    unsigned char *copy_from, *copy_to;
    size_t copy_bytes;
    unsigned copy_threads;
    struct rng rng;
    size_t pair;
};

/* ---- the experts ---- */

static enum err_code add_variant(struct local *l, struct memtier_store *store, const char *file,
                                 uint64_t k, struct err *e)
{
    struct expert_add_report report;
    char *name = mem_format("variant-%04llu", (unsigned long long)k);
    char *path = mem_format("%s/%s.gguf", memtier_store_path(store), name);
    struct expert_add_options add = {.path = path, .name = name};
    enum err_code code = experts_vary(file, path, k, e);
    if (code == ERR_OK)
        code = experts_add(store, &add, NULL, &report, e);
    unlink(path);
    free(path);
    free(name);
    (void)l;
    return code;
}

/* As many variants of the file as are wanted; those that an earlier run left are used again. */
static enum err_code make_variants(struct local *l, const char *dir, const char *file,
                                   struct err *e)
{
    struct memtier_store *store = NULL;
    struct expert_info *list = NULL;
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    size_t count = 0;
    enum err_code code = memtier_store_open(dir, MEMTIER_WRITE, &store, e);
    if (code == ERR_OK)
        code = experts_list(store, &list, &count, e);
    for (uint64_t i = 0; i < l->b->experts && code == ERR_OK; i++) {
        char name[32];
        bool there = false;
        snprintf(name, sizeof(name), "variant-%04llu", (unsigned long long)(l->b->seed + i));
        for (size_t k = 0; k < count; k++)
            there |= strcmp(list[k].name, name) == 0;
        (void)progress_report(&progress, "making variants", i, l->b->experts);
        if (!there)
            code = add_variant(l, store, file, l->b->seed + i, e);
    }
    cli_bar_done(&bar);
    experts_list_done(list, count);
    memtier_store_close(&store);
    return code;
}

static bool is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static enum err_code name_experts(struct local *l, bool variants, struct err *e)
{
    struct bench_switch *b = l->b;
    size_t all = experts_count(l->stack.experts), n = 0;
    l->experts = mem_array(BASE_MAX(all, b->models.count) + 1, sizeof(*l->experts));
    for (size_t i = 0; !variants && i < b->models.count; i++) {
        l->experts[n] = experts_find(l->stack.experts, b->models.items[i]);
        if (l->experts[n] == NULL || !expert_ok(l->experts[n], e))
            return err_set(e, ERR_MODEL, "the store has no expert '%s' that can serve",
                           b->models.items[i]);
        n++;
    }
    for (size_t i = 0; (variants || b->models.count == 0) && i < all && n < b->experts; i++) {
        struct expert *ex = experts_at(l->stack.experts, i);
        bool ours = !variants || strncmp(expert_info(ex)->name, "variant-", 8) == 0;
        if (ours && expert_ok(ex, NULL) && !expert_info(ex)->is_adapter)
            l->experts[n++] = ex;
    }
    if (n < 2)
        return err_set(e, ERR_INVALID,
                       "switching takes two experts at least, and the store has %zu full "
                       "models: give --model FILE to make variants of it",
                       n);
    b->experts = n;
    return ERR_OK;
}

/* ---- opening ---- */

static enum err_code set_conf(struct local *l, struct conf *c, struct err *e)
{
    struct bench_switch *b = l->b;
    enum err_code code = conf_load_environment(c, e);
    if (code == ERR_OK && b->store)
        code = conf_set(c, "store.path", b->store, e);
    if (code == ERR_OK && b->loader)
        code = conf_set(c, "tiers.loader", b->loader, e);
    if (code == ERR_OK && b->verify)
        code = conf_set(c, "tiers.verify", b->verify, e);
    if (b->threads)
        c->rdu_threads = (uint32_t)b->threads;
    c->tiers_hbm_bytes = b->hbm;
    return code;
}

/* A store of its own for variants that nobody wants to keep. */
static enum err_code choose_store(struct local *l, struct conf *c, struct err *e)
{
    const char *tmp = getenv("TMPDIR");
    char *path = mem_format("%s/switchyard-bench-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (mkdtemp(path) == NULL) {
        enum err_code code = err_set_errno(e, ERR_IO, "cannot make %s", path);
        free(path);
        return code;
    }
    l->stack.temporary = path;
    return conf_set(c, "store.path", path, e);
}

static enum err_code open_engine(struct local *l, struct err *e)
{
    const struct engine_options o = {.experts = l->stack.experts,
                                     .memtier = l->stack.memtier,
                                     .node = l->stack.node,
                                     .max_sequences = 4,
                                     .max_queue = 16,
                                     .max_defer_ms = 500,
                                     .prefill_chunk = 256};
    return engine_open(&o, &l->engine, e);
}

static enum err_code open_all(struct local *l, struct conf *c, struct err *e)
{
    struct bench_switch *b = l->b;
    bool variants = b->models.count == 1 && is_file(b->models.items[0]);
    enum err_code code = set_conf(l, c, e);
    if (code == ERR_OK && variants && b->store == NULL)
        code = choose_store(l, c, e);
    if (code == ERR_OK && variants)
        code = make_variants(l, c->store_path, b->models.items[0], e);
    if (code == ERR_OK && strcmp(b->from, "ddr") == 0) {
        struct memtier_store *store = NULL;
        code = memtier_store_open(c->store_path, MEMTIER_READ, &store, e);
        if (code == ERR_OK)
            c->tiers_ddr_bytes =
                memtier_store_bytes(store) + memtier_store_bytes(store) / 16 + 64 * BASE_MIB;
        memtier_store_close(&store);
    }
    if (code == ERR_OK)
        code = stack_open(c, MEMTIER_SERVE, &l->stack, e);
    if (code == ERR_OK)
        code = name_experts(l, variants, e);
    if (code == ERR_OK)
        code = open_engine(l, e);
    if (code == ERR_OK)
        code = bench_pattern_init(&l->pattern, b->pattern, (uint32_t)b->experts, b->seed, e);
    return code;
}

static unsigned char *map_memory(size_t bytes)
{
    unsigned char *p =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 1, bytes);
    return p;
}

static uint64_t largest(const struct local *l)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < l->b->experts; i++)
        bytes = BASE_MAX(bytes, expert_bytes(l->experts[i]));
    return bytes;
}

static void open_yardsticks(struct local *l)
{
    const char *text = memtier_loader_text(l->stack.memtier);
    l->copy_bytes = (size_t)largest(l);
    l->copy_from = map_memory(l->copy_bytes);
    l->copy_to = map_memory(l->copy_bytes);
    /* As many threads as the loader moves bytes with. */
    l->copy_threads = strstr(text, " preads") && strcmp(l->b->from, "nvme") == 0
                          ? BASE_MIN((unsigned)atoi(text), (unsigned)COPY_THREADS_MAX)
                          : 1;
    if (memtier_device_open(largest(l) + BASE_MIB, &l->device, NULL) != ERR_OK)
        l->device = NULL;
}

static void close_all(struct local *l)
{
    engine_close(&l->engine);
    memtier_device_close(&l->device);
    if (l->copy_from)
        munmap(l->copy_from, l->copy_bytes);
    if (l->copy_to)
        munmap(l->copy_to, l->copy_bytes);
    bench_pattern_done(&l->pattern);
    stack_close(&l->stack);
    free(l->experts);
}

/* ---- what is compared with ---- */

struct copy_part {
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
};

static void *copy_run(void *arg)
{
    const struct copy_part *p = arg;
    memcpy(p->to, p->from, p->bytes);
    return NULL;
}

static double copy_rate(struct local *l, uint64_t bytes)
{
    struct copy_part part[COPY_THREADS_MAX];
    pthread_t thread[COPY_THREADS_MAX];
    size_t n = BASE_MIN((size_t)bytes, l->copy_bytes), each = n / l->copy_threads;
    if (l->copy_from == NULL || l->copy_to == NULL)
        return 0;
    uint64_t t0 = clock_ns();
    for (unsigned i = 0; i < l->copy_threads; i++)
        part[i] = (struct copy_part){l->copy_to + i * each, l->copy_from + i * each, each};
    unsigned started = 1;
    while (started < l->copy_threads &&
           thread_start(&thread[started], "bench-copy", copy_run, &part[started], NULL) == ERR_OK)
        started++;
    (void)copy_run(&part[0]);
    for (unsigned i = 1; i < started; i++)
        thread_join(thread[i]);
    return (double)(each * started) * 1e9 / (double)BASE_MAX(clock_ns() - t0, (uint64_t)1);
}

static const char *data_file(const struct local *l, const struct expert *ex)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    return memtier_segment_path(l->stack.memtier, segs[count / 2]);
}

/* The system must not have the file in memory: an import just wrote it. */
static void evict_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)close(fd);
}

static double device_rate(struct local *l, const struct expert *ex)
{
    uint64_t ns = 0, bytes = expert_bytes(ex);
    struct stat st;
    const char *path = data_file(l, ex);
    if (l->device == NULL || stat(path, &st) != 0)
        return 0;
    bytes = BASE_MIN(bytes, (uint64_t)st.st_size);
    if (memtier_device_read(l->device, path, bytes, device_shape, &ns, NULL) != ERR_OK || ns == 0)
        return 0;
    return (double)bytes * 1e9 / (double)ns;
}

/* Bytes per second by fio's own account; 0 = there is no fio, or it could not. */
static double fio_rate(struct local *l, const struct expert *ex)
{
    char line[256];
    double rate = 0;
    char *command =
        mem_format("%s --name=switchyard --filename='%s' --readonly --rw=read --direct=1 "
                   "--ioengine=io_uring --fixedbufs=1 --registerfiles=1 --bs=%u --iodepth=%u "
                   "--output-format=json 2>/dev/null",
                   l->b->fio ? l->b->fio : "fio", data_file(l, ex), device_shape.block_bytes,
                   device_shape.depth);
    FILE *f = strchr(data_file(l, ex), '\'') ? NULL : popen(command, "r");
    free(command);
    while (f && fgets(line, sizeof(line), f)) {
        const char *at = strstr(line, "\"bw_bytes\"");
        if (at && rate <= 0) /* the first is that of reads */
            rate = strtod(strchr(at, ':') + 1, NULL);
    }
    if (f)
        pclose(f);
    return rate;
}

/* ---- one measurement ---- */

static uint64_t process_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static enum err_code order(struct local *l, enum engine_order_kind kind, struct expert *ex,
                           struct engine_order *ret, struct err *e)
{
    *ret = (struct engine_order){.kind = kind,
                                 .expert = ex,
                                 .to_nvme = strcmp(l->b->from, "ddr") != 0,
                                 .patience_ns = 10000000000u};
    return engine_order_run(l->engine, ret, e);
}

/* Out of hbm, and into ddr where that is what is measured. */
static enum err_code send_away(struct local *l, struct expert *ex, struct err *e)
{
    struct engine_order o;
    struct memtier_stats st;
    const struct timespec nap = {.tv_nsec = 200000};
    enum err_code code = order(l, ENGINE_ORDER_UNLOAD, ex, &o, e);
    do {
        memtier_stats(l->stack.memtier, &st);
        if (st.jobs_out > 0)
            nanosleep(&nap, NULL);
    } while (code == ERR_OK && st.jobs_out > 0);
    return code;
}

static void on_event(struct request *r)
{
    if (atomic_load(&r->state) == REQUEST_DONE)
        sem_post(r->owner);
}

/* Milliseconds from submitting to the first token. */
static enum err_code first_token(struct local *l, struct expert *ex,
                                 const struct token_list *prompt, double *ret_ms, struct err *e)
{
    sem_t done;
    uint32_t retry;
    struct request *r = request_open();
    sem_init(&done, 0, 0);
    r->expert = ex;
    r->prompt.ids = mem_array(prompt->count, sizeof(*prompt->ids));
    memcpy(r->prompt.ids, prompt->ids, prompt->count * sizeof(*prompt->ids));
    r->prompt.count = prompt->count;
    r->sampling.temperature = 0;
    r->cache_prompt = false; /* the resident pair computes what the switch computed */
    r->max_tokens = (uint32_t)l->b->tokens;
    r->notify = on_event;
    r->owner = &done;
    request_prepare_output(r);
    uint64_t t0 = clock_ns();
    enum err_code code = engine_submit(l->engine, r, &retry, e);
    while (code == ERR_OK && sem_wait(&done) != 0)
        ; /* EINTR */
    if (code == ERR_OK && r->error.code != ERR_OK) {
        *e = r->error;
        code = e->code;
    }
    *ret_ms = (double)(r->account.first_token_ns - t0) * 1e-6;
    request_unref(&r);
    sem_destroy(&done);
    return code;
}

static void random_prompt(struct local *l, const struct expert *ex, struct token_list *p)
{
    p->count = l->b->prompt;
    for (size_t i = 0; i < p->count; i++)
        p->ids[i] = (int32_t)rng_below(&l->rng, (uint64_t)tokenizer_vocab(expert_tokenizer(ex)));
}

static struct expert *other_expert(struct local *l, const struct expert *ex)
{
    for (;;) {
        struct expert *other = l->experts[rng_below(&l->rng, l->b->experts)];
        if (other != ex)
            return other;
    }
}

static enum err_code measure_load(struct local *l, struct expert *ex, double *ret_ms, struct err *e)
{
    struct bench_figures *f = &l->b->figures;
    struct engine_order o;
    bool device_first = l->pair % 2 == 0;
    struct expert *other = other_expert(l, ex);
    bool ddr = strcmp(l->b->from, "ddr") == 0;
    enum err_code code = send_away(l, ex, e);
    double device = !ddr && device_first ? device_rate(l, other) : 0,
           copy = device_first ? copy_rate(l, expert_bytes(ex)) : 0;
    uint64_t cpu = process_cpu_ns();
    if (code == ERR_OK)
        code = order(l, ENGINE_ORDER_LOAD, ex, &o, e);
    if (code != ERR_OK)
        return code;
    f->cpu_ns += process_cpu_ns() - cpu;
    if (!device_first) {
        device = ddr ? 0 : device_rate(l, other);
        copy = copy_rate(l, o.bytes);
    }
    double rate = (double)o.bytes * 1e9 / (double)BASE_MAX(o.ns, (uint64_t)1);
    *ret_ms = (double)o.ns * 1e-6;
    f->bytes += o.bytes;
    bench_add(&f->load, *ret_ms);
    bench_add(&f->rate, rate);
    if (device > 0) {
        bench_add(&f->device, device);
        bench_add(&f->share, rate / device);
    }
    if (copy > 0) {
        bench_add(&f->copy, copy);
        bench_add(&f->copy_share, rate / copy);
    }
    if (l->pair % 4 == 3 && !ddr && (l->b->fio == NULL || strcmp(l->b->fio, "none") != 0)) {
        double fio = fio_rate(l, other);
        if (fio > 0)
            bench_add(&f->fio, fio);
    }
    if (l->b->live)
        fprintf(stderr, "%zu load %.2f ms %.3f GB/s, device %.3f, memcpy %.3f\n", l->pair, *ret_ms,
                rate * 1e-9, device * 1e-9, copy * 1e-9);
    return ERR_OK;
}

/* From ddr and nvme: the load alone, then the switch that must load, then the same request again.
 * From hbm: after another resident expert, and again after itself. */
static enum err_code measure_switch(struct local *l, struct expert *ex, struct token_list *prompt,
                                    struct err *e)
{
    struct bench_figures *f = &l->b->figures;
    double load = 0, ttft = 0, resident = 0, ignored;
    bool hbm = strcmp(l->b->from, "hbm") == 0, resident_first = hbm && l->pair % 2 == 1;
    enum err_code code = ERR_OK;
    random_prompt(l, ex, prompt);
    if (!hbm)
        code = measure_load(l, ex, &load, e);
    if (code == ERR_OK && !hbm)
        code = send_away(l, ex, e);
    if (code == ERR_OK && resident_first)
        code = first_token(l, ex, prompt, &ignored, e);
    if (code == ERR_OK && resident_first)
        code = first_token(l, ex, prompt, &resident, e);
    if (code == ERR_OK)
        code = first_token(l, other_expert(l, ex), prompt, &ignored, e);
    if (code == ERR_OK)
        code = first_token(l, ex, prompt, &ttft, e);
    if (code == ERR_OK && !resident_first)
        code = first_token(l, ex, prompt, &resident, e);
    if (code != ERR_OK)
        return code;
    bench_add(&f->ttft, ttft);
    bench_add(&f->resident, resident);
    bench_add(&f->excess, ttft - resident);
    bench_add(&f->ratio, ttft / BASE_MAX(load, resident));
    if (l->b->live)
        fprintf(stderr, "%zu switch %.3f ms, resident %.3f, load %.2f\n", l->pair, ttft, resident,
                load);
    return ERR_OK;
}

/* ---- the run ---- */

/* Memory that was never touched is slow to read into, and so is the first touch of everything else:
 * each expert once, then wait until the pool is populated. */
static enum err_code warm_up(struct local *l, struct token_list *prompt, struct err *e)
{
    enum err_code code = ERR_OK;
    struct engine_order o;
    double ignored;
    for (size_t i = 0; i < l->b->experts; i++)
        evict_file(data_file(l, l->experts[i]));
    for (size_t i = 0; i < l->b->experts && code == ERR_OK; i++) {
        code = order(l, ENGINE_ORDER_LOAD, l->experts[i], &o, e);
        random_prompt(l, l->experts[i], prompt);
        if (code == ERR_OK && strcmp(l->b->which, "switch") == 0)
            code = first_token(l, l->experts[i], prompt, &ignored, e);
    }
    long before = -1, now = 0;
    for (int i = 0; i < 40 && before != now; i++) {
        const struct timespec nap = {.tv_nsec = 250000000};
        char text[64] = "";
        FILE *f = fopen("/proc/self/statm", "re");
        before = now;
        now = f && fgets(text, sizeof(text), f)
                  ? strtol(strchr(text, ' ') ? strchr(text, ' ') : text, NULL, 10)
                  : 0;
        if (f)
            fclose(f);
        nanosleep(&nap, NULL);
    }
    return code;
}

static enum memtier_tier tier_of(const char *name)
{
    enum memtier_tier t = MEMTIER_HBM;
    while (t < MEMTIER_NVME && strcmp(memtier_tier_name(t), name) != 0)
        t++;
    return t;
}

static enum err_code measure(struct local *l, struct err *e)
{
    struct bench_switch *b = l->b;
    struct memtier_stats before, after;
    struct token_list prompt = {.ids = mem_array(b->prompt, sizeof(int32_t))};
    bool load = strcmp(b->which, "load") == 0;
    rng_init(&l->rng, b->seed);
    open_yardsticks(l);
    enum err_code code = warm_up(l, &prompt, e);
    memtier_stats(l->stack.memtier, &before);
    for (; l->pair < b->requests && code == ERR_OK; l->pair++) {
        struct expert *ex = l->experts[bench_pattern_next(&l->pattern)];
        double ignored;
        code = load ? measure_load(l, ex, &ignored, e) : measure_switch(l, ex, &prompt, e);
    }
    memtier_stats(l->stack.memtier, &after);
    if (!load) {
        struct engine_stats *st = mem_alloc(sizeof(*st)); /* tens of kilobytes of histograms */
        engine_stats(l->engine, st);
        const struct hist *h = &st->switch_hist[tier_of(b->from)];
        b->figures.launch_ns_p50 = hist_quantile(h, 0.5);
        b->figures.launch_ns_p99 = hist_quantile(h, 0.99);
        free(st);
    }
    b->figures.loads = after.loads + after.promotions - before.loads - before.promotions;
    b->figures.hits = after.hits - before.hits;
    b->figures.evictions = after.evictions - before.evictions;
    snprintf(b->loader_text, sizeof(b->loader_text), "%s", memtier_loader_text(l->stack.memtier));
    free(prompt.ids);
    return code;
}

enum err_code bench_run_local(struct bench_switch *b, struct err *e)
{
    struct local l = {.b = b};
    struct conf c;
    conf_init(&c);
    enum err_code code = open_all(&l, &c, e);
    if (code == ERR_OK)
        code = measure(&l, e);
    close_all(&l);
    conf_done(&c);
    return code;
}
