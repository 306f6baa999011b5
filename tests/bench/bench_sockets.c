/* What emulating sockets costs, and whether they move what was predicted. Run by
 * tests/bench/sockets.
 *
 *   bench_sockets steps SOCKETS TOKENS COUNT   COUNT steps and nothing else: to be counted by
 * callgrind bench_sockets pairs TOKENS PAIRS           steps of one socket and of eight in turns,
 * one thread bench_sockets traffic SOCKETS TOKENS       a thread per socket: counted and predicted
 * bytes, scratch
 *
 * The model is SmolLM2's shape with six layers, a vocabulary of 4096 and random weights: nothing to
 * load. One JSON object on stdout. */
#include <stdlib.h>
#include <string.h>

#include "rdu/node/node.h"
#include "rdu/opt/opt.h"
#include "tests/unit/rdu/ir_model.h"

#define POISON 0xa5

struct rig {
    struct rdu_program *program;
    struct rdu_node *node;
    struct model *model;
    struct model_step step;
    float *logits;
};

static struct model_spec spec_of(void)
{
    struct model_spec s = model_spec_tiny();
    s.matrix = RDU_Q5_0; /* random blocks are weights of a sane size, without quantising anything */
    s.head = RDU_Q5_0;
    s.width = 576;
    s.heads = 9;
    s.kv_heads = 3;
    s.head_dim = s.rot = 64;
    s.ffn = 1536;
    s.vocab = 4096;
    s.layers = 6;
    s.context = 256;
    s.page_tokens = 128;
    return s;
}

static void die(const char *what, const struct err *e)
{
    fprintf(stderr, "bench_sockets: %s%s%s\n", what, e ? ": " : "", e ? e->msg : "");
    exit(1);
}

static void open_program(struct rig *r, const struct model_spec *s, uint32_t sockets)
{
    struct err e = {0};
    struct rdu_graph *g = model_graph(s);
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = sockets};
    if (rdu_program_open(&g, &o, &r->program, &e) != ERR_OK)
        die("program", &e);
}

/* `model` NULL: makes one. */
static void rig_open(struct rig *r, struct model *model, uint32_t sockets, uint32_t threads,
                     uint32_t tokens)
{
    struct err e = {0};
    struct model_spec s = spec_of();
    memset(r, 0, sizeof(*r));
    open_program(r, &s, sockets);
    r->model = model;
    if (model->memory.head == NULL)
        model_open(model, &s, r->program, 1);
    struct rdu_node_options o = {.sockets = sockets, .threads = threads, .max_tokens = tokens};
    if (rdu_node_open(&o, &r->node, &e) != ERR_OK ||
        rdu_node_prepare(r->node, r->program, tokens, 1, &e) != ERR_OK)
        die("node", &e);
    struct rng rng = model->rng; /* the same step for every rig */
    model_step_make(model, &r->step, tokens, 1, 40);
    model->rng = rng;
    r->logits = mem_array(s.vocab, sizeof(*r->logits));
}

static void rig_close(struct rig *r)
{
    rdu_node_close(&r->node);
    rdu_program_close(&r->program);
    free(r->logits);
}

static void step(struct rig *r)
{
    model_run(r->model, r->program, &r->step, r->node, r->logits);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* ---- commands -------------------------------------------------------------------------------- */

static void steps(uint32_t sockets, uint32_t tokens, uint32_t count)
{
    struct model model = {0};
    struct rig r;
    rig_open(&r, &model, sockets, 1, tokens);
    for (uint32_t i = 0; i < count; i++)
        step(&r);
    printf("{\"sockets\":%u,\"tokens\":%u,\"steps\":%u}\n", sockets, tokens, count);
    rig_close(&r);
    model_close(&model);
}

static double timed_ms(struct rig *r, uint32_t count)
{
    uint64_t start = clock_ns();
    for (uint32_t i = 0; i < count; i++)
        step(r);
    return (double)(clock_ns() - start) * 1e-6 / count;
}

static void pairs(uint32_t tokens, uint32_t count)
{
    struct model model = {0};
    struct rig one, eight;
    rig_open(&one, &model, 1, 1, tokens);
    rig_open(&eight, &model, 8, 1, tokens);
    double *ratio = mem_array(count, sizeof(*ratio)), *ms = mem_array(count, sizeof(*ms));
    step(&one);
    step(&eight);
    uint32_t times = 1 + (uint32_t)(20.0 / timed_ms(&one, 1)); /* a sample of about 20 ms */
    for (uint32_t i = 0; i < count; i++) {
        double a, b;
        if (i % 2) {
            b = timed_ms(&eight, times);
            a = timed_ms(&one, times);
        } else {
            a = timed_ms(&one, times);
            b = timed_ms(&eight, times);
        }
        ratio[i] = b / a;
        ms[i] = a;
    }
    bool same = memcmp(one.logits, eight.logits, spec_of().vocab * sizeof(float)) == 0;
    qsort(ratio, count, sizeof(*ratio), by_value);
    qsort(ms, count, sizeof(*ms), by_value);
    printf(
        "{\"tokens\":%u,\"pairs\":%u,\"ms_one_socket\":%.4f,\"eight_over_one\":%.4f,\"p10\":%.4f,"
        "\"p90\":%.4f,\"same_bits\":%s}\n",
        tokens, count, ms[count / 2], ratio[count / 2], ratio[count / 10],
        ratio[count - 1 - count / 10], same ? "true" : "false");
    free(ratio);
    free(ms);
    rig_close(&one);
    rig_close(&eight);
    model_close(&model);
}

static void print_list(const char *name, const uint64_t *v, uint32_t n)
{
    printf(",\"%s\":[", name);
    for (uint32_t i = 0; i < n; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)v[i]);
    printf("]");
}

/* Bytes of the arena up to the last one that a step wrote. */
static size_t scratch_used(struct rig *r)
{
    memset(r->node->arena, POISON, r->node->arena_bytes);
    step(r);
    size_t used = r->node->arena_bytes;
    while (used > 0 && (uint8_t)r->node->arena[used - 1] == POISON)
        used--;
    return used;
}

static void traffic(uint32_t sockets, uint32_t tokens)
{
    struct model model = {0};
    struct rig r;
    uint64_t counted[NODE_SOCKETS_MAX], gathered = 0;
    rig_open(&r, &model, sockets, sockets, tokens);
    step(&r);
    for (uint32_t i = 0; i < sockets; i++) {
        counted[i] = r.node->worker[i].weight_bytes;
        gathered += r.node->worker[i].gather_bytes;
    }
    struct opt_traffic want;
    struct rdu_args a = {.n_tokens = tokens,
                         .n_outs = 1,
                         .n_layers = model.spec.layers,
                         .globals = model.globals,
                         .layers = model.layers};
    opt_traffic_of(r.program, &a, sockets, &want);
    size_t naive, planned = rdu_program_scratch(r.program, tokens, 1, &naive),
                  used = scratch_used(&r);
    printf("{\"sockets\":%u,\"tokens\":%u", sockets, tokens);
    print_list("weight_bytes", counted, sockets);
    print_list("weight_bytes_predicted", want.weight_bytes, sockets);
    printf(",\"gather_bytes\":%llu,\"gather_bytes_predicted\":%llu", (unsigned long long)gathered,
           (unsigned long long)want.gather_bytes);
    printf(",\"scratch_bytes\":%zu,\"scratch_bytes_planned\":%zu,\"scratch_bytes_naive\":%zu}\n",
           used, planned, naive);
    rig_close(&r);
    model_close(&model);
}

static uint32_t number(const char *text, uint32_t least, uint32_t most)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    if (end == text || *end != '\0' || v < least || v > most) {
        fprintf(stderr, "bench_sockets: '%s' is not a number from %u to %u\n", text, least, most);
        exit(2);
    }
    return (uint32_t)v;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "steps") == 0)
        steps(number(argv[2], 1, 16), number(argv[3], 1, 64), number(argv[4], 1, 100000));
    else if (argc == 4 && strcmp(argv[1], "pairs") == 0)
        pairs(number(argv[2], 1, 64), number(argv[3], 1, 1001));
    else if (argc == 4 && strcmp(argv[1], "traffic") == 0)
        traffic(number(argv[2], 1, 16), number(argv[3], 1, 64));
    else {
        fprintf(stderr, "usage: bench_sockets steps SOCKETS TOKENS COUNT | pairs TOKENS PAIRS | "
                        "traffic SOCKETS TOKENS\n");
        return 2;
    }
    return 0;
}
