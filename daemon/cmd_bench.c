/* switchyard bench: the engine's own speed, without HTTP, beside the limit of this machine measured in the
 * same run. One JSON object per line with --json. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_out.h"
#include "daemon/stack.h"

struct bench {
    const char *model;
    uint64_t threads, sockets, prompt, tokens, reps;
    const char *numerics, *exec, *store;
    bool json;
    struct stack stack;
    struct expert *expert;
    double limit; /* bytes/s */
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

static void print_row(const struct bench *b, const char *name, size_t n, double tokens_per_s, double *ms,
                      size_t ms_count, double bytes_per_s)
{
    double p50 = quantile(ms, ms_count, 0.5), p99 = quantile(ms, ms_count, 0.99);
    double share = b->limit > 0 ? bytes_per_s / b->limit : 0;
    const struct expert_info *info = expert_info(b->expert);
    if (!b->json) {
        printf("%-8s %-8s %u threads  %-12s n %-5zu %9.1f tokens/s  p50 %8.3f ms  p99 %8.3f ms  %5.1f %% of "
               "%.1f GB/s read\n",
               name, info->types ? info->types : "", rdu_node_threads(b->stack.node),
               rdu_node_isa(b->stack.node), n, tokens_per_s, p50, p99, 100 * share, b->limit * 1e-9);
        return;
    }
    struct buf out = {0};
    buf_puts(&out, "{\"bench\":");
    json_put_str(&out, name);
    buf_puts(&out, ",\"type\":");
    json_put_str(&out, info->types);
    buf_printf(&out, ",\"threads\":%u,\"isa\":", rdu_node_threads(b->stack.node));
    json_put_str(&out, rdu_node_isa(b->stack.node));
    buf_printf(&out, ",\"n\":%zu,\"tokens_per_s\":%.2f,\"ms_p50\":%.4f,\"ms_p99\":%.4f,"
                     "\"share_of_limit\":%.4f,\"limit\":\"read %.2f GB/s\"}",
               n, tokens_per_s, p50, p99, share, b->limit * 1e-9);
    puts(out.data);
    fflush(stdout);
    buf_done(&out);
}

/* ---- running ------------------------------------------------------------------------------------------- */

static enum err_code run_step(struct bench *b, struct sequence *s, uint32_t n, struct err *e)
{
    struct expert_step *step = NULL;
    struct step_item item = {s, n};
    enum err_code code = expert_step_open(b->stack.experts, &item, 1, &step, e);
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
    while (code == ERR_OK && sequence_generated(s) == 0)
        code = run_step(b, s, (uint32_t)BASE_MIN(sequence_pending(s), (size_t)256), e);
    return code;
}

static enum err_code open_sequence(struct bench *b, uint32_t max_tokens, struct sequence **ret, struct err *e)
{
    struct sequence_options o = {.expert = b->expert, .tokens_count = b->prompt, .max_tokens = max_tokens};
    int32_t *ids = mem_array(b->prompt, sizeof(*ids));
    struct rng rng;
    rng_init(&rng, 1);
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

/* ignore_eos costs a scan of the vocabulary per token; greedy decoding of random prompts rarely ends, so the
 * timed part runs without and simply goes on. */
static enum err_code bench_decode(struct bench *b, struct err *e)
{
    size_t n = b->tokens, count = 0;
    double *ms = mem_array(n * b->reps, sizeof(*ms)), *rate = mem_array(b->reps, sizeof(*rate));
    enum err_code code = ERR_OK;
    for (size_t r = 0; code == ERR_OK && r < b->reps; r++) {
        struct sequence *s = NULL;
        code = open_sequence(b, (uint32_t)n + 1, &s, e);
        if (code == ERR_OK)
            code = run_prompt(b, s, e);
        uint64_t start = clock_ns(), last = start;
        for (size_t i = 0; code == ERR_OK && i < n; i++) {
            code = run_step(b, s, 1, e);
            uint64_t now = clock_ns();
            ms[count++] = (double)(now - last) * 1e-6;
            last = now;
        }
        rate[r] = (double)n / ((double)(last - start) * 1e-9);
        sequence_close(&s);
    }
    if (code == ERR_OK) {
        double median = quantile(rate, b->reps, 0.5);
        print_row(b, "decode", n, median, ms, count, median * (double)expert_bytes(b->expert));
    }
    free(ms);
    free(rate);
    return code;
}

static enum err_code bench_prefill(struct bench *b, struct err *e)
{
    double *ms = mem_array(b->reps, sizeof(*ms)), bytes = 0;
    enum err_code code = ERR_OK;
    for (size_t r = 0; code == ERR_OK && r < b->reps + 1; r++) { /* the first warms up */
        struct sequence *s = NULL;
        code = open_sequence(b, 1, &s, e);
        uint64_t start = clock_ns();
        if (code == ERR_OK)
            code = run_prompt(b, s, e);
        if (r > 0)
            ms[r - 1] = (double)(clock_ns() - start) * 1e-6;
        sequence_close(&s);
    }
    if (code == ERR_OK) {
        double median = quantile(ms, b->reps, 0.5);
        bytes = (double)expert_bytes(b->expert) * (double)((b->prompt + 255) / 256) / (median * 1e-3);
        print_row(b, "prefill", b->prompt, (double)b->prompt / (median * 1e-3), ms, b->reps, bytes);
    }
    free(ms);
    return code;
}

/* ---- the command --------------------------------------------------------------------------------------------- */

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
    return code;
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
        b->limit = rdu_node_measure_read(b->stack.node, 512 * BASE_MIB);
        code = strcmp(which, "decode") == 0 ? bench_decode(b, &e) : bench_prefill(b, &e);
        stack_close(&b->stack);
    }
    conf_done(&c);
    return code == ERR_OK ? CLI_DONE : cli_refuse("bench", &e);
}

int cmd_bench(int argc, char **argv)
{
    const char *which = NULL;
    struct bench b = {.tokens = 128, .reps = 5};
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &b.model, "NAME|FILE", "an expert of the store, or a GGUF file"},
        {"store", 0, CLI_TEXT, &b.store, "DIR", "the store (default: store.path of the configuration)"},
        {"threads", 't', CLI_UINT, &b.threads, "N", "host threads (default: all usable)", 1, 16},
        {"sockets", 0, CLI_UINT, &b.sockets, "N", "emulated sockets (default 8)", 1, 16},
        {"prompt", 'p', CLI_UINT, &b.prompt, "N", "prompt tokens (default: decode 16, prefill 512)", 1, 1 << 20},
        {"tokens", 'n', CLI_UINT, &b.tokens, "N", "tokens to decode (default 128)", 1, 1 << 20},
        {"reps", 'r', CLI_UINT, &b.reps, "N", "repetitions; the median is reported (default 5)", 1, 1000},
        {"numerics", 0, CLI_TEXT, &b.numerics, "int8|f32", "default int8"},
        {"exec", 0, CLI_TEXT, &b.exec, "LEVEL", "interp, unfused or fused (default)"},
        {"json", 0, CLI_FLAG, &b.json, NULL, "one JSON object per line"},
        {0}};
    const struct cli_spec spec = {
        "bench", "decode|prefill --model NAME|FILE",
        "Times the engine itself: decode generates tokens one by one, prefill runs a long prompt. The share of\n"
        "the limit is weight bytes read per second over the read bandwidth measured in the same run.",
        "  switchyard bench decode --model model.gguf --threads 2\n"
        "  switchyard bench prefill --model smollm2 --prompt 512 --json\n",
        options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &which, &args);
    if (exit != CLI_RUN)
        return exit;
    if (strcmp(which, "decode") != 0 && strcmp(which, "prefill") != 0)
        return cli_wrong("bench", "'%s' is not a bench: decode or prefill", which);
    if (b.prompt == 0)
        b.prompt = strcmp(which, "decode") == 0 ? 16 : 512;
    return run(which, &b);
}
