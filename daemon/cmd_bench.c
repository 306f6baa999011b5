/* switchyard bench: the engine's own speed, without HTTP, beside the limit of this machine measured
 * in the same run: the reads of weights and KV over the read bandwidth, or the operations of the
 * kernels over each kernel's own peak, whichever takes longer. One JSON object per line with
 * --json. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_out.h"
#include "daemon/stack.h"

#define BATCH_MAX 256

struct bench {
    const char *model;
    uint64_t threads, sockets, prompt, tokens, reps, batch, chunk;
    const char *numerics, *exec, *store;
    bool json;
    struct stack stack;
    struct expert *expert;
    struct expert *adapters[BATCH_MAX]; /* over it; sequence i runs adapter i % adapters_count */
    size_t adapters_count;              /* 0 = all run `expert` */
    double read, int8, f32;             /* limits: bytes/s, operations/s */
    struct rdu_node_stats timed;        /* what the timed runs did */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(double *v, size_t n, double q)
{
    qsort(v, n, sizeof(*v), by_value);
    size_t at = (size_t)(q * (double)(n - 1) + 0.5);
    return n ? v[at] : 0;
}

/* The least time in which this machine could have done the timed work. */
static double limit_s(const struct bench *b, bool memory)
{
    double read = b->read > 0 ? (double)(b->timed.weight_bytes + b->timed.kv_bytes) / b->read : 0;
    double compute = b->timed.int8_ops / b->int8 + b->timed.f32_ops / b->f32;
    return memory ? read : BASE_MAX(read, compute);
}

/* `tokens` came out in `busy_s` of timed work; ms are its steps or runs. `memory`: reads are the
 * limit. */
static void print_row(const struct bench *b, const char *name, size_t n, double tokens_per_s,
                      double busy_s, double *ms, size_t ms_count, bool memory)
{
    double p50 = quantile(ms, ms_count, 0.5), p99 = quantile(ms, ms_count, 0.99);
    double share = busy_s > 0 ? limit_s(b, memory) / busy_s : 0;
    const struct expert_info *info = expert_info(b->expert);
    char limit[96];
    if (memory)
        snprintf(limit, sizeof(limit), "read %.2f GB/s", b->read * 1e-9);
    else
        snprintf(limit, sizeof(limit), "int8 %.0f GOP/s, f32 %.0f GFLOP/s, read %.1f GB/s",
                 b->int8 * 1e-9, b->f32 * 1e-9, b->read * 1e-9);
    if (!b->json) {
        printf("%-8s %-8s %u threads  %-12s n %-5zu %9.1f tokens/s  p50 %8.3f ms  p99 %8.3f ms  "
               "%5.1f %% of "
               "%s\n",
               name, info->types ? info->types : "", rdu_node_threads(b->stack.node),
               rdu_node_isa(b->stack.node), n, tokens_per_s, p50, p99, 100 * share, limit);
        return;
    }
    struct buf out = {0};
    buf_puts(&out, "{\"bench\":");
    json_put_str(&out, name);
    buf_puts(&out, ",\"type\":");
    json_put_str(&out, info->types);
    buf_printf(&out, ",\"threads\":%u,\"isa\":", rdu_node_threads(b->stack.node));
    json_put_str(&out, rdu_node_isa(b->stack.node));
    buf_printf(&out,
               ",\"n\":%zu,\"tokens_per_s\":%.2f,\"ms_p50\":%.4f,\"ms_p99\":%.4f,"
               "\"share_of_limit\":%.4f,\"limit\":",
               n, tokens_per_s, p50, p99, share);
    json_put_str(&out, limit);
    buf_puts(&out, "}");
    puts(out.data);
    fflush(stdout);
    buf_done(&out);
}

/* ---- running
 * ------------------------------------------------------------------------------------------- */

static enum err_code run_step(struct bench *b, const struct step_item *items, size_t count,
                              struct err *e)
{
    struct expert_step *step = NULL;
    enum err_code code = expert_step_open(b->stack.experts, items, count, &step, e);
    while (code == ERR_OK) {
        enum step_state state = expert_step_advance(step, e);
        if (state == STEP_DONE)
            break;
        if (state == STEP_FAILED)
            code = e->code;
        struct pollfd fd = {.fd = memtier_fd(b->stack.memtier), .events = POLLIN};
        poll(&fd, 1, 100);
    }
    expert_step_close(&step);
    return code;
}

static enum err_code run_prompt(struct bench *b, struct sequence *s, struct err *e)
{
    enum err_code code = ERR_OK;
    while (code == ERR_OK && sequence_generated(s) == 0) {
        struct step_item item = {s, (uint32_t)BASE_MIN(sequence_pending(s), (size_t)b->chunk)};
        code = run_step(b, &item, 1, e);
    }
    return code;
}

/* Add to b->timed what the node did since `before`. */
static void count_work(struct bench *b, const struct rdu_node_stats *before)
{
    struct rdu_node_stats now;
    rdu_node_stats(b->stack.node, &now);
    b->timed.weight_bytes += now.weight_bytes - before->weight_bytes;
    b->timed.kv_bytes += now.kv_bytes - before->kv_bytes;
    b->timed.int8_ops += now.int8_ops - before->int8_ops;
    b->timed.f32_ops += now.f32_ops - before->f32_ops;
}

static enum err_code open_sequence(struct bench *b, struct expert *expert, uint64_t seed,
                                   uint32_t max_tokens, struct sequence **ret, struct err *e)
{
    struct sequence_options o = {
        .expert = expert, .tokens_count = b->prompt, .max_tokens = max_tokens};
    int32_t *ids = mem_array(b->prompt, sizeof(*ids));
    struct rng rng;
    rng_init(&rng, seed);
    for (size_t i = 0; i < b->prompt; i++)
        ids[i] = (int32_t)rng_below(&rng, (uint64_t)tokenizer_vocab(expert_tokenizer(b->expert)));
    o.tokens = ids;
    sampling_init(&o.sampling);
    o.sampling.temperature = 0;
    o.sampling.ignore_eos = true;
    enum err_code code = sequence_open(b->stack.experts, &o, ret, e);
    free(ids);
    return code;
}

/* `batch` sequences that have run their prompts. */
static enum err_code open_batch(struct bench *b, struct step_item *items, struct err *e)
{
    enum err_code code = ERR_OK;
    for (size_t i = 0; code == ERR_OK && i < b->batch; i++) {
        items[i].n_tokens = 1;
        struct expert *ex = b->adapters_count ? b->adapters[i % b->adapters_count] : b->expert;
        code = open_sequence(b, ex, 1 + i, (uint32_t)b->tokens + 1, &items[i].seq, e);
        if (code == ERR_OK)
            code = run_prompt(b, items[i].seq, e);
    }
    return code;
}

/* One repetition; *ret_ms [tokens] are its steps, *ret_s their sum. */
static enum err_code decode_once(struct bench *b, double *ms, double *ret_s, struct err *e)
{
    struct step_item items[BATCH_MAX] = {0};
    struct rdu_node_stats before;
    enum err_code code = open_batch(b, items, e);
    rdu_node_stats(b->stack.node, &before);
    uint64_t start = clock_ns(), last = start;
    for (size_t i = 0; code == ERR_OK && i < b->tokens; i++) {
        code = run_step(b, items, b->batch, e);
        uint64_t now = clock_ns();
        ms[i] = (double)(now - last) * 1e-6;
        last = now;
    }
    *ret_s = (double)(last - start) * 1e-9;
    count_work(b, &before);
    for (size_t i = 0; i < b->batch; i++)
        sequence_close(&items[i].seq);
    return code;
}

/* decode and batch: tokens of `batch` sequences step by step. */
static enum err_code bench_decode(struct bench *b, const char *name, struct err *e)
{
    double *ms = mem_array(b->tokens * b->reps, sizeof(*ms)),
           *rate = mem_array(b->reps, sizeof(*rate));
    double busy_s = 0;
    enum err_code code = ERR_OK;
    for (size_t r = 0; code == ERR_OK && r < b->reps; r++) {
        double seconds = 0;
        code = decode_once(b, ms + r * b->tokens, &seconds, e);
        busy_s += seconds;
        rate[r] = (double)(b->tokens * b->batch) / seconds;
    }
    bool memory = b->batch == 1;
    if (code == ERR_OK)
        print_row(b, name, memory ? b->prompt : b->batch, quantile(rate, b->reps, 0.5), busy_s, ms,
                  b->tokens * b->reps, memory);
    free(ms);
    free(rate);
    return code;
}

static void find_adapters(struct bench *b, size_t most)
{
    struct experts *x = b->stack.experts;
    b->adapters_count = 0;
    for (size_t i = 0; i < experts_count(x) && b->adapters_count < most; i++) {
        struct expert *ex = experts_at(x, i);
        if (expert_ok(ex, NULL) && expert_info(ex)->is_adapter &&
            expert_base_index(ex) == expert_base_index(b->expert))
            b->adapters[b->adapters_count++] = ex;
    }
}

static void print_adapters(const struct bench *b, size_t distinct, double rate, double one,
                           double ratio, double *ms)
{
    size_t count = b->tokens * b->reps;
    double p50 = quantile(ms, count, 0.5), p99 = quantile(ms, count, 0.99);
    const char *types = expert_info(b->expert)->types;
    if (!b->json) {
        printf("adapters %-8s %u threads  n %-5llu %9.1f tokens/s on %zu adapters  p50 %8.3f ms  "
               "p99 %8.3f ms  %.3f of the same on one (%.1f tokens/s)\n",
               types, rdu_node_threads(b->stack.node), (unsigned long long)b->batch, rate, distinct,
               p50, p99, ratio, one);
        return;
    }
    struct buf out = {0};
    buf_puts(&out, "{\"bench\":\"adapters\",\"type\":");
    json_put_str(&out, types);
    buf_printf(&out, ",\"threads\":%u,\"isa\":", rdu_node_threads(b->stack.node));
    json_put_str(&out, rdu_node_isa(b->stack.node));
    buf_printf(&out,
               ",\"n\":%llu,\"adapters\":%zu,\"tokens_per_s\":%.2f,\"ms_p50\":%.4f,\"ms_p99\":%.4f,"
               "\"share_of_limit\":%.4f,\"limit\":\"one adapter %.2f tokens/s\"}",
               (unsigned long long)b->batch, distinct, rate, p50, p99, ratio, one);
    puts(out.data);
    fflush(stdout);
    buf_done(&out);
}

/* The same batch on as many adapters as it has sequences and on one, alternating. */
static enum err_code bench_adapters(struct bench *b, struct err *e)
{
    double *ms = mem_array(b->tokens * (b->reps + 1), sizeof(*ms)),
           *other = mem_array(b->tokens, sizeof(*other));
    double *rate = mem_array(b->reps, sizeof(*rate)), *one = mem_array(b->reps, sizeof(*one)),
           *ratio = mem_array(b->reps, sizeof(*ratio));
    enum err_code code = ERR_OK;
    find_adapters(b, b->batch);
    size_t distinct = b->adapters_count;
    if (distinct < 2)
        code = err_set(e, ERR_MODEL, "the store has %zu adapters over %s: two or more are compared",
                       distinct, expert_info(b->expert)->name);
    for (size_t r = 0; code == ERR_OK && r <= b->reps; r++) { /* the first warms up */
        double many_s = 0, one_s = 0;
        b->adapters_count = distinct;
        code = decode_once(b, ms + (r ? r - 1 : 0) * b->tokens, &many_s, e);
        b->adapters_count = 1;
        if (code == ERR_OK)
            code = decode_once(b, other, &one_s, e);
        if (code != ERR_OK || r == 0)
            continue;
        rate[r - 1] = (double)(b->tokens * b->batch) / many_s;
        one[r - 1] = (double)(b->tokens * b->batch) / one_s;
        ratio[r - 1] = one_s / many_s;
    }
    if (code == ERR_OK)
        print_adapters(b, distinct, quantile(rate, b->reps, 0.5), quantile(one, b->reps, 0.5),
                       quantile(ratio, b->reps, 0.5), ms);
    free(ms);
    free(other);
    free(rate);
    free(one);
    free(ratio);
    return code;
}

static enum err_code bench_prefill(struct bench *b, struct err *e)
{
    double *ms = mem_array(b->reps, sizeof(*ms)), busy_s = 0;
    enum err_code code = ERR_OK;
    for (size_t r = 0; code == ERR_OK && r < b->reps + 1; r++) { /* the first warms up */
        struct sequence *s = NULL;
        struct rdu_node_stats before;
        code = open_sequence(b, b->expert, 1, 1, &s, e);
        rdu_node_stats(b->stack.node, &before);
        uint64_t start = clock_ns();
        if (code == ERR_OK)
            code = run_prompt(b, s, e);
        double seconds = (double)(clock_ns() - start) * 1e-9;
        if (r > 0) {
            ms[r - 1] = seconds * 1e3;
            busy_s += seconds;
            count_work(b, &before);
        }
        sequence_close(&s);
    }
    if (code == ERR_OK) {
        double median = quantile(ms, b->reps, 0.5);
        print_row(b, "prefill", b->prompt, (double)b->prompt / (median * 1e-3), busy_s, ms, b->reps,
                  false);
    }
    free(ms);
    return code;
}

/* ---- the command
 * --------------------------------------------------------------------------------------------- */

static enum err_code set_options(struct bench *b, struct conf *c, struct err *e)
{
    enum err_code code = conf_load_environment(c, e);
    if (code == ERR_OK && b->store)
        code = conf_set(c, "store.path", b->store, e);
    if (code == ERR_OK && b->numerics)
        code = conf_set(c, "rdu.numerics", b->numerics, e);
    if (code == ERR_OK && b->exec)
        code = conf_set(c, "rdu.exec", b->exec, e);
    if (b->threads)
        c->rdu_threads = (uint32_t)b->threads;
    if (b->sockets)
        c->rdu_sockets = (uint32_t)b->sockets;
    if (b->chunk)
        c->sched_prefill_chunk = (uint32_t)b->chunk;
    b->chunk = c->sched_prefill_chunk;
    c->sched_max_sequences = BASE_MAX(c->sched_max_sequences, (uint32_t)b->batch);
    return code;
}

/* What is measured is the compiled form, not the wait for it. */
static void wait_native(struct stack *s)
{
    struct rdu_native_stats stats;
    if (s->native_said.code != ERR_OK)
        fprintf(stderr, "switchyard bench: %s\n", s->native_said.msg);
    if (s->native == NULL)
        return;
    rdu_native_wait(s->native);
    rdu_native_stats(s->native, &stats);
    if (stats.last_error[0])
        fprintf(stderr, "switchyard bench: native: %s\n", stats.last_error);
}

static int run(const char *which, struct bench *b)
{
    struct conf c;
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    conf_init(&c);
    enum err_code code = set_options(b, &c, &e);
    if (code == ERR_OK)
        code = stack_open_model(&c, b->model, &progress, &b->stack, &b->expert, &e);
    cli_bar_done(&bar);
    if (code == ERR_OK) {
        wait_native(&b->stack);
        b->read = rdu_node_measure_read(b->stack.node, 512 * BASE_MIB);
        rdu_node_measure_peaks(b->stack.node, &b->int8, &b->f32);
        if (strcmp(which, "adapters") == 0)
            code = bench_adapters(b, &e);
        else if (strcmp(which, "prefill") == 0)
            code = bench_prefill(b, &e);
        else
            code = bench_decode(b, which, &e);
        stack_close(&b->stack);
    }
    conf_done(&c);
    return code == ERR_OK ? CLI_DONE : cli_refuse("bench", &e);
}

int cmd_bench(int argc, char **argv)
{
    const char *which = NULL;
    struct bench b = {.tokens = 128, .reps = 5, .batch = 0};
    if (argc > 1 && (strcmp(argv[1], "switch") == 0 || strcmp(argv[1], "load") == 0))
        return cmd_bench_switch(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "serve") == 0)
        return cmd_bench_serve(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "fusion") == 0)
        return cmd_bench_fusion(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "variants") == 0)
        return cmd_bench_variants(argc - 1, argv + 1);
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &b.model, "NAME|FILE", "an expert of the store, or a GGUF file"},
        {"store", 0, CLI_TEXT, &b.store, "DIR",
         "the store (default: store.path of the configuration)"},
        {"threads", 't', CLI_UINT, &b.threads, "N", "host threads (default: all usable)", 1, 16},
        {"sockets", 0, CLI_UINT, &b.sockets, "N", "emulated sockets (default 8)", 1, 16},
        {"prompt", 'p', CLI_UINT, &b.prompt, "N",
         "prompt tokens (default: decode 16, batch 128, prefill 512)", 1, 1 << 20},
        {"tokens", 'n', CLI_UINT, &b.tokens, "N", "tokens to decode (default 128)", 1, 1 << 20},
        {"batch", 'b', CLI_UINT, &b.batch, "N", "sequences that decode together (batch: 8)", 1,
         BATCH_MAX},
        {"chunk", 'c', CLI_UINT, &b.chunk, "N",
         "prompt tokens per step (default: sched.prefill_chunk)", 1, 65536},
        {"reps", 'r', CLI_UINT, &b.reps, "N", "repetitions; the median is reported (default 5)", 1,
         1000},
        {"numerics", 0, CLI_TEXT, &b.numerics, "int8|f32", "default int8"},
        {"exec", 0, CLI_TEXT, &b.exec, "LEVEL", "interp, unfused, fused (default) or native"},
        {"json", 0, CLI_FLAG, &b.json, NULL, "one JSON object per line"},
        {0}};
    const struct cli_spec spec = {
        "bench",
        "decode|prefill|batch|adapters --model NAME|FILE",
        "Times the engine itself: decode generates tokens one by one after --prompt tokens, batch "
        "does so for\n"
        "--batch sequences at once, adapters does so with each sequence on another adapter over "
        "the "
        "model and with\n"
        "all on one, prefill runs a long prompt. The share of the limit is, for "
        "decode, the\n"
        "bytes of weights and KV read per second over the read bandwidth; for the others the least "
        "time of "
        "the same work:\n"
        "the operations of each kernel over its own peak (or the reads, if they take longer), over "
        "the time\n"
        "taken. Bandwidth and peaks are measured in the same run with the same threads.\n\n"
        "'bench switch --help' and 'bench load --help': changing experts, here or of a server;\n"
        "'bench serve --help': what HTTP costs beside the engine;\n"
        "'bench variants --help': many models out of one, to change between;\n"
        "'bench fusion --help': what fusing and the layout of data are worth.",
        "  switchyard bench decode --model model.gguf --threads 2\n"
        "  switchyard bench decode --model model.gguf --prompt 1024\n"
        "  switchyard bench batch --model smollm2 --batch 16\n"
        "  switchyard bench prefill --model smollm2 --prompt 512 --json\n",
        options,
        1,
        1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &which, &args);
    if (exit != CLI_RUN)
        return exit;
    bool batch = strcmp(which, "batch") == 0, decode = strcmp(which, "decode") == 0;
    batch |= strcmp(which, "adapters") == 0;
    if (!batch && !decode && strcmp(which, "prefill") != 0)
        return cli_wrong(
            "bench", "'%s' is not a bench: decode, prefill, batch, adapters, serve, switch or load",
            which);
    if (!batch && b.batch > 1)
        return cli_wrong("bench", "--batch belongs to 'bench batch' and 'bench adapters'");
    if (b.batch == 0)
        b.batch = batch ? 8 : 1;
    if (b.prompt == 0)
        b.prompt = decode ? 16 : batch ? 128 : 512;
    return run(which, &b);
}
