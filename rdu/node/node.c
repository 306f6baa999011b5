/* The node: sockets, the host threads that play them, scratch. With T threads each plays S / T
 * sockets; the row shards of neighbouring sockets are neighbours in memory, so one thread runs them
 * as one kernel call and emulating eight sockets costs nothing beyond dividing the rows (run.c). */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rdu/node/node.h"

/* Scratch comes from mmap so that it is page-aligned, zeroed and can use huge pages. */
static void *scratch_map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void scratch_unmap(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

static void pin_to(uint32_t thread_idx)
{
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return;
    uint32_t seen = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || seen++ != thread_idx)
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof(one), &one); /* a refusal only costs locality */
        return;
    }
}

static void *worker_main(void *arg)
{
    struct node_worker *w = arg;
    struct rdu_node *n = w->node;
    if (n->opt.pin_threads)
        pin_to(w->thread_idx);
    uint32_t seen = 0;
    for (;;) {
        node_gate_wait(&n->job, seen, NULL);
        seen = atomic_load(&n->job.value);
        if (atomic_load(&n->stop))
            return NULL;
        node_work(w);
        node_barrier_wait(&n->barrier, NULL); /* the caller returns when all are through */
    }
}

static enum err_code check_options(const struct rdu_node_options *o, struct err *e)
{
    if (o->sockets < 1 || o->sockets > NODE_SOCKETS_MAX)
        return err_set_param(e, ERR_INVALID, "rdu.sockets", "%u sockets: 1 to %d are possible",
                             o->sockets, NODE_SOCKETS_MAX);
    if (o->threads < 1 || o->threads > o->sockets)
        return err_set_param(
            e, ERR_INVALID, "rdu.threads",
            "%u threads for %u sockets: a socket is played by one thread, so use 1 to "
            "%u, or more sockets",
            o->threads, o->sockets, o->sockets);
    return ERR_OK;
}

enum err_code rdu_node_open(const struct rdu_node_options *opt, struct rdu_node **ret,
                            struct err *e)
{
    enum err_code code = check_options(opt, e);
    if (code != ERR_OK)
        return code;
    struct rdu_node *n = mem_alloc(sizeof(*n));
    n->opt = *opt;
    n->barrier.threads = opt->threads;
    code = rdu_kernels_init(&n->kernels, opt->cpu, e);
    for (uint32_t i = 0; code == ERR_OK && i < opt->threads; i++) {
        struct node_worker *w = &n->worker[i];
        w->node = n;
        w->thread_idx = i;
        char name[16];
        snprintf(name, sizeof(name), "socket-%u", i);
        if (i > 0) { /* the caller is worker 0 */
            code = thread_start(&w->thread, name, worker_main, w, e);
            n->started += code == ERR_OK;
        }
    }
    if (code != ERR_OK) {
        rdu_node_close(&n);
        return code;
    }
    *ret = n;
    return ERR_OK;
}

static void worker_free(struct node_worker *w, size_t local_bytes)
{
    scratch_unmap(w->local_arena, local_bytes);
    free(w->delta_u);
    free(w->delta_v);
    free(w->delta_y);
    free(w->attn_state);
    w->local_arena = NULL;
    w->delta_u = w->delta_v = w->delta_y = w->attn_state = NULL;
}

void rdu_node_close(struct rdu_node **np)
{
    struct rdu_node *n = *np;
    if (n == NULL)
        return;
    atomic_store(&n->stop, true);
    node_gate_publish(&n->job, atomic_load(&n->job.value) + 1);
    for (uint32_t i = 1; i <= n->started; i++)
        thread_join(n->worker[i].thread);
    for (uint32_t i = 0; i < NODE_SOCKETS_MAX; i++)
        worker_free(&n->worker[i], n->local_bytes);
    scratch_unmap(n->arena, n->arena_bytes);
    free(n);
    *np = NULL;
}

const char *rdu_node_isa(const struct rdu_node *n)
{
    return n->kernels.isa;
}

uint32_t rdu_node_sockets(const struct rdu_node *n)
{
    return n->opt.sockets;
}

uint32_t rdu_node_threads(const struct rdu_node *n)
{
    return n->opt.threads;
}

void rdu_node_stats(const struct rdu_node *n, struct rdu_node_stats *ret)
{
    *ret = n->stats;
}

/* Widest matrix whose rows a delta may touch: bounds the per-thread temporaries. */
static uint32_t widest_rows(const struct rdu_slot_list *list, uint32_t widest)
{
    for (uint32_t i = 0; i < list->count; i++)
        widest = BASE_MAX(widest, list->slots[i].rows);
    return widest;
}

static uint32_t attention_floats(const struct rdu_program *p)
{
    uint32_t most = 0;
    for (int s = 0; s < RDU_SECTIONS; s++)
        for (uint32_t i = 0; i < p->section[s].count; i++) {
            const struct rdu_launch *l = &p->section[s].launches[i];
            if (l->kernel == RDU_KERNEL_ATTENTION)
                most = BASE_MAX(most,
                                l->attention.heads * (2 + l->attention.head_dim) * NODE_ATTN_TILE);
        }
    return most;
}

/* 64-byte aligned floats, so that kernels may use aligned stores. */
static float *floats_alloc(size_t count)
{
    size_t bytes = (count * sizeof(float) + 63) & ~(size_t)63;
    float *p = aligned_alloc(64, BASE_MAX(bytes, 64));
    if (p)
        memset(p, 0, bytes);
    return p;
}

/* The four buffers of one worker, in sizes that suit every program prepared so far and the new one.
 */
struct worker_sizes {
    size_t local_bytes;
    uint32_t tile_rows, attn_floats;
};

static bool worker_alloc(struct node_worker *w, const struct worker_sizes *z)
{
    w->local_arena = scratch_map(z->local_bytes);
    w->delta_u = floats_alloc((size_t)NODE_TILE * NODE_RANK_MAX);
    w->delta_v = floats_alloc((size_t)NODE_TILE * z->tile_rows);
    w->delta_y = floats_alloc((size_t)NODE_TILE * z->tile_rows);
    w->attn_state = floats_alloc(z->attn_floats + 16);
    return w->local_arena && w->delta_u && w->delta_v && w->delta_y && w->attn_state;
}

/* New buffers for all workers or, if there is no memory, the old ones stay: programs prepared
 * before this one still run in them. */
static enum err_code grow_workers(struct rdu_node *n, const struct worker_sizes *z, struct err *e)
{
    struct node_worker fresh[NODE_SOCKETS_MAX] = {0};
    for (uint32_t i = 0; i < n->opt.threads; i++) {
        if (worker_alloc(&fresh[i], z))
            continue;
        for (uint32_t k = 0; k <= i; k++)
            worker_free(&fresh[k], z->local_bytes);
        return err_set(e, ERR_NO_MEMORY, "cannot allocate scratch of socket thread %u", i);
    }
    for (uint32_t i = 0; i < n->opt.threads; i++) {
        struct node_worker *w = &n->worker[i];
        worker_free(w, n->local_bytes);
        w->local_arena = fresh[i].local_arena;
        w->delta_u = fresh[i].delta_u;
        w->delta_v = fresh[i].delta_v;
        w->delta_y = fresh[i].delta_y;
        w->attn_state = fresh[i].attn_state;
    }
    n->local_bytes = z->local_bytes;
    n->tile_rows = z->tile_rows;
    n->attn_floats = z->attn_floats;
    return ERR_OK;
}

enum err_code rdu_node_prepare(struct rdu_node *n, const struct rdu_program *p, uint32_t n_tokens,
                               uint32_t n_outs, struct err *e)
{
    size_t arena, local = p->row_bytes_peak * NODE_LOCAL_TOKENS + 64;
    uint32_t rows = BASE_MAX(n_tokens, n_outs);
    if (!size_mul(p->row_bytes_peak, rows, &arena) || !size_add(arena, 64, &arena))
        return err_set(e, ERR_NO_MEMORY, "scratch for %u tokens overflows", rows);
    if (arena > n->arena_bytes) {
        void *fresh = scratch_map(arena);
        if (fresh == NULL)
            return err_set_errno(e, ERR_NO_MEMORY, "cannot map %zu bytes of scratch for %u tokens",
                                 arena, rows);
        scratch_unmap(n->arena, n->arena_bytes);
        n->arena = fresh;
        n->arena_bytes = arena;
    }
    uint32_t tile_rows = (widest_rows(&p->layer_slots, 0) + 15u) & ~15u;
    struct worker_sizes z = {.local_bytes = BASE_MAX(local, n->local_bytes),
                             .tile_rows = BASE_MAX(tile_rows, n->tile_rows),
                             .attn_floats = BASE_MAX(attention_floats(p), n->attn_floats)};
    if (z.local_bytes == n->local_bytes && z.tile_rows == n->tile_rows &&
        z.attn_floats == n->attn_floats)
        return ERR_OK;
    return grow_workers(n, &z, e);
}

static void count_attention(struct rdu_node *n, const struct rdu_launch *l, uint32_t layer)
{
    const struct rdu_args *a = n->args;
    const struct rdu_attention_options *opt = &l->attention;
    uint64_t pairs = 0, positions = 0;
    for (uint32_t t = 0; t < a->n_tokens; t++) {
        uint32_t window = opt->windowed && a->window ? a->window[layer] : 0;
        uint32_t end = (opt->bidirectional ? a->ends[t] : a->pos[t]) + 1;
        uint32_t visible = window ? BASE_MIN(end, window) : end;
        pairs += visible;
        if (t + 1 == a->n_tokens ||
            a->seq[t + 1] != a->seq[t]) /* its last token sees all the others see */
            positions += visible;
    }
    n->stats.f32_ops += 4.0 * opt->heads * opt->head_dim * (double)pairs;
    n->stats.kv_bytes +=
        positions * (rdu_kv_page_bytes(a->kv_type, 1, opt->kv_heads, opt->head_dim, RDU_KV_BLOCK) /
                     RDU_KV_BLOCK);
}

/* Weights and operations of one launch of the run in progress. */
static void count_launch(struct rdu_node *n, const struct rdu_launch *l, enum rdu_section section,
                         uint32_t layer)
{
    const struct rdu_args *a = n->args;
    bool in_layer = section == RDU_SECTION_LAYER, head = l->kernel == RDU_KERNEL_HEAD;
    if (l->kernel == RDU_KERNEL_ATTENTION)
        count_attention(n, l, layer);
    if (l->kernel != RDU_KERNEL_MATMUL && l->kernel != RDU_KERNEL_GATE_UP && !head)
        return;
    const struct rdu_weight *slots =
        in_layer ? a->layers + (size_t)layer * n->program->layer_slots.count : a->globals;
    for (uint32_t i = 0; i < l->slots; i++) {
        const struct rdu_weight *w = &slots[l->slot[i]];
        double ops = 2.0 * w->rows * w->cols * (head ? a->n_outs : a->n_tokens);
        n->stats.weight_bytes += rdu_pack_bytes(w->type, w->rows, w->cols);
        if (n->program->numerics == RDU_NUMERICS_INT8 && n->kernels.mm_q8[w->type])
            n->stats.int8_ops += ops;
        else
            n->stats.f32_ops += ops;
    }
}

static void count_run(struct rdu_node *n, uint64_t start_ns)
{
    const struct rdu_program *p = n->program;
    uint32_t last = n->args->n_layers + 1;
    n->stats.runs++;
    n->stats.host_ns += clock_ns() - start_ns;
    for (uint32_t s = n->stage_from; s < n->stage_to; s++) {
        enum rdu_section section =
            s == 0 ? RDU_SECTION_EMBED : (s == last ? RDU_SECTION_HEAD : RDU_SECTION_LAYER);
        n->stats.launches += p->section[section].count;
        for (uint32_t i = 0; i < p->section[section].count; i++)
            count_launch(n, &p->section[section].launches[i], section, s - 1);
    }
    if (n->stage_from < last &&
        n->stage_to >= last) { /* the last layer ran: the base was read once */
        n->stats.base_reads++;
        n->stats.tokens += n->args->n_tokens;
    }
}

static void run_interpreted(struct rdu_node *n)
{
    uint32_t last = n->args->n_layers + 1;
    for (uint32_t s = n->stage_from; s < n->stage_to; s++) {
        if (s == 0)
            rdu_interp_section(n->program, n->args, RDU_SECTION_EMBED, 0);
        else if (s == last)
            rdu_interp_section(n->program, n->args, RDU_SECTION_HEAD, 0);
        else
            rdu_interp_section(n->program, n->args, RDU_SECTION_LAYER, s - 1);
    }
}

/* Up to here one thread finishes a layer before two have met at its barriers (weights times tokens;
 * a barrier is about 0.3 us, a layer has eight, a thread does about 60 products per ns). */
#define SOLO_PRODUCTS (400 * 1000)

static void plan_native(struct rdu_node *n)
{
    struct rdu_program *p = (struct rdu_program *)(uintptr_t)n->program;
    n->unit = p->opt.exec == RDU_EXEC_NATIVE ? atomic_load(&p->native) : NULL;
    n->solo = n->unit && n->args->n_tokens * p->layer_weights <= SOLO_PRODUCTS;
}

void rdu_node_run(struct rdu_node *n, const struct rdu_program *p, const struct rdu_args *args,
                  uint32_t stage_from, uint32_t stage_to)
{
    uint64_t start_ns = clock_ns();
    n->program = p;
    n->args = args;
    n->stage_from = stage_from;
    n->stage_to = stage_to;
    plan_native(n);
    if (p->opt.exec == RDU_EXEC_INTERP) {
        run_interpreted(n);
    } else if (n->solo) {
        node_work(&n->worker[0]);
    } else {
        if (n->opt.threads > 1)
            node_gate_publish(&n->job, atomic_load(&n->job.value) + 1);
        node_work(&n->worker[0]);
        node_barrier_wait(&n->barrier, NULL);
    }
    count_run(n, start_ns);
}
