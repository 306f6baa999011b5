/* switchyard route sweep: what lambda and margin buy before anything is served. Labelled prompts go
 * through the real router and the real policy; only the memory is simulated: so many experts fit,
 * the least recently used leaves. Each task has several interchangeable experts that differ a
 * little from prompt to prompt, as the element types of one model do; with one variant each the
 * same sweep shows the price for experts that nobody can stand in for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/route_encoder.h"
#include "router/router.h"

#define SPREAD 0.1 /* how far the variants of a task lie apart in score, at most */
#define SAMPLES_MAX 100000u

struct sweep {
    struct router_head *head;
    struct route_encoder *encoder;
    struct router_data data;
    float *scores; /* [rows, labels] */
    size_t labels;
    size_t *tasks; /* [tasks_count] labels, by name */
    size_t tasks_count, variants, room, requests;
    double mb, rate, zipf;
    const char *trace;
    uint32_t *rank; /* [requests] popularity rank of the task, from 0 */
    size_t *row;    /* [requests] */
};

struct outcome {
    uint64_t loads, right, changed, outside;
    double stall_s;
};

static int label_of(const struct sweep *s, const char *name)
{
    for (size_t i = 0; i < s->labels; i++)
        if (strcmp(router_head_label(s->head, i), name) == 0)
            return (int)i;
    return -1;
}

static void score_rows(struct sweep *s)
{
    struct router_scratch *scratch = router_scratch_open(s->head);
    const struct router_options opt = {
        .threshold = (double)NAN, .generalist_idx = -1, .encoder = route_encoder_view(s->encoder)};
    s->scores = mem_array(s->data.count + 1, s->labels * sizeof(float));
    for (size_t i = 0; i < s->data.count; i++) {
        struct router_decision d;
        const struct router_turn t = {s->data.rows[i].text, strlen(s->data.rows[i].text)};
        router_decide(s->head, scratch, &t, 1, &opt, &d, s->scores + i * s->labels);
    }
    router_scratch_close(&scratch);
}

/* The first labels that the data has rows of, the generalist left out. */
static enum err_code choose_tasks(struct sweep *s, struct err *e)
{
    size_t found = 0, wanted = s->tasks_count;
    s->tasks = mem_array(wanted + 1, sizeof(*s->tasks));
    for (size_t l = 0; l < s->labels && found < wanted; l++) {
        bool used = false;
        for (size_t i = 0; i < s->data.count && !used; i++)
            used = label_of(s, s->data.rows[i].expert) == (int)l;
        if (used && strcmp(router_head_label(s->head, l), "general") != 0)
            s->tasks[found++] = l;
    }
    return found == wanted ? ERR_OK
                           : err_set(e, ERR_INVALID, "the data have prompts of %zu tasks, not %zu",
                                     found, wanted);
}

/* Column `expert_rank` of a trace, or draws from a Zipf law. */
static enum err_code read_ranks(struct sweep *s, struct rng *rng, struct err *e)
{
    struct buf file = {0};
    s->rank = mem_array(s->requests + 1, sizeof(*s->rank));
    if (s->trace == NULL) {
        double total = 0.0;
        for (size_t k = 0; k < s->tasks_count; k++)
            total += pow((double)(k + 1), -s->zipf);
        for (size_t i = 0; i < s->requests; i++) {
            double u = rng_f64(rng) * total;
            while (s->rank[i] + 1 < s->tasks_count && (u -= pow(s->rank[i] + 1.0, -s->zipf)) > 0.0)
                s->rank[i]++;
        }
        return ERR_OK;
    }
    enum err_code code = file_read(s->trace, (size_t)1 << 30, &file, e);
    char *line = code == ERR_OK && file.data ? strtok(file.data, "\n") : NULL;
    size_t column = 0, count = 0;
    for (const char *p = line; p && strncmp(p, "expert_rank", 11) != 0; column++)
        if ((p = strchr(p, ',')) != NULL)
            p++;
    while (code == ERR_OK && (line = strtok(NULL, "\n")) != NULL && count < s->requests) {
        const char *p = line;
        for (size_t c = 0; c < column && p; c++)
            if ((p = strchr(p, ',')) != NULL)
                p++;
        if (p)
            s->rank[count++] = (uint32_t)((strtoul(p, NULL, 10) - 1) % s->tasks_count);
    }
    if (code == ERR_OK && count == 0)
        code = err_set(e, ERR_INVALID, "%s has no column expert_rank", s->trace);
    s->requests = count;
    buf_done(&file);
    return code;
}

static void draw_rows(struct sweep *s, struct rng *rng)
{
    s->row = mem_array(s->requests + 1, sizeof(*s->row));
    for (size_t i = 0; i < s->requests; i++)
        do
            s->row[i] = rng_below(rng, s->data.count);
        while (label_of(s, s->data.rows[s->row[i]].expert) != (int)s->tasks[s->rank[i]]);
}

/* Seconds since its last use by rank in `used`; the oldest of more than `room` is out. */
static bool is_resident(const uint64_t *used, size_t experts, size_t idx, size_t room)
{
    size_t newer = 0;
    for (size_t i = 0; i < experts; i++)
        newer += used[i] > used[idx];
    return used[idx] > 0 && newer < room;
}

static struct outcome run(const struct sweep *s, const struct router_policy *p, double margin)
{
    size_t experts = s->tasks_count * s->variants;
    uint64_t *used = mem_array(experts, sizeof(*used));
    struct outcome o = {0};
    for (size_t r = 0; r < s->requests; r++) {
        struct router_candidate c[ROUTER_CANDIDATES_MAX] = {{0}};
        const float *scores = s->scores + s->row[r] * s->labels;
        size_t plain = 0;
        for (size_t i = 0; i < experts; i++) {
            uint64_t h = hash64_of(&s->row[r], sizeof(s->row[r]), i + 1);
            double less = s->variants > 1 ? SPREAD * (double)(h >> 11) * 0x1p-53 : 0.0;
            bool here = is_resident(used, experts, i, s->room);
            c[i].score = scores[s->tasks[i / s->variants]] * (float)(1.0 - less);
            c[i].resident = here;
            c[i].bytes = here ? 0.0f : (float)(s->mb * 1e6);
            c[i].load_s = here ? 0.0f : (float)(s->mb / s->rate);
            if (c[i].score > c[plain].score)
                plain = i;
        }
        size_t chosen = router_choose(p, c, experts, plain, NULL);
        o.changed += chosen != plain;
        o.outside += c[chosen].score < c[plain].score - (float)margin - 1e-6f;
        o.loads += !c[chosen].resident;
        o.stall_s += (double)c[chosen].load_s;
        o.right += chosen / s->variants == s->rank[r];
        used[chosen] = r + 1;
    }
    free(used);
    return o;
}

static enum err_code print_frontier(const struct sweep *s, struct err *e)
{
    static const double lambdas[] = {0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0},
                        margins[] = {0.05, 0.1, 0.2, 0.5};
    double first = 0.0;
    printf("%zu requests, %zu tasks x %zu variants of %.0f MB, room for %zu\n"
           "lambda  margin  MB/request  fewer  wait s/request  right task  changed  outside the "
           "margin\n",
           s->requests, s->tasks_count, s->variants, s->mb, s->room);
    for (size_t l = 0; l < BASE_COUNT(lambdas); l++)
        for (size_t m = 0; m < (l == 0 ? 1 : BASE_COUNT(margins)); m++) {
            struct router_policy *p = NULL;
            const struct router_policy_options opt = {.lambda = lambdas[l], .margin = margins[m]};
            enum err_code code = router_policy_open(&opt, &p, e);
            if (code != ERR_OK)
                return code;
            struct outcome o = run(s, p, margins[m]);
            router_policy_close(&p);
            double n = (double)s->requests, mb = (double)o.loads * s->mb / n;
            if (l == 0)
                first = mb;
            printf("%6.2f  %6.2f  %10.2f  %4.1f%%  %14.4f  %9.2f%%  %7llu  %llu\n", lambdas[l],
                   margins[m], mb, first > 0 ? 100.0 * (1.0 - mb / first) : 0.0, o.stall_s / n,
                   100.0 * (double)o.right / n, (unsigned long long)o.changed,
                   (unsigned long long)o.outside);
        }
    return ERR_OK;
}

static enum err_code run_sweep(struct sweep *s, const char *head, const char *encoder,
                               const char *data, struct err *e)
{
    struct rng rng;
    rng_init(&rng, 1);
    enum err_code code = router_head_open(head, &s->head, e);
    if (code == ERR_OK && encoder != NULL && strcmp(encoder, "none") != 0)
        code = route_encoder_open(encoder, &s->encoder, e);
    if (code == ERR_OK)
        code = router_data_load(data, &s->data, e);
    if (code != ERR_OK)
        return code;
    s->labels = router_head_labels(s->head);
    if (s->tasks_count * s->variants > ROUTER_CANDIDATES_MAX)
        return err_set(e, ERR_INVALID, "more than %d experts", ROUTER_CANDIDATES_MAX);
    code = choose_tasks(s, e);
    if (code == ERR_OK)
        code = read_ranks(s, &rng, e);
    if (code != ERR_OK)
        return code;
    draw_rows(s, &rng);
    score_rows(s);
    return print_frontier(s, e);
}

int cmd_route_sweep(int argc, char **argv)
{
    const char *path = NULL, *head = NULL, *encoder = NULL;
    uint64_t tasks = 4, variants = 3, room = 4, requests = 5000;
    struct sweep s = {.mb = 143.0, .rate = 1000.0, .zipf = 1.0};
    const struct cli_option options[] = {
        {"head", 0, CLI_TEXT, &head, "FILE", "the routing head (required)"},
        {"encoder", 0, CLI_TEXT, &encoder, "PATH", "its encoder (default: n-grams alone)"},
        {"trace", 0, CLI_TEXT, &s.trace, "CSV",
         "popularity from column expert_rank (default: Zipf)"},
        {"tasks", 0, CLI_UINT, &tasks, "N", "tasks, by name (4)", 1, 256},
        {"variants", 0, CLI_UINT, &variants, "N", "interchangeable experts of each (3)", 1, 16},
        {"room", 0, CLI_UINT, &room, "N", "experts that fit at once (4)", 1, 256},
        {"requests", 0, CLI_UINT, &requests, "N", "at most (5000)", 1, SAMPLES_MAX},
        {"mb", 0, CLI_REAL, &s.mb, "X", "size of an expert (143)", 1, 1e6},
        {"rate", 0, CLI_REAL, &s.rate, "X", "MB/s of a load (1000)", 1, 1e6},
        {"zipf", 0, CLI_REAL, &s.zipf, "X", "exponent of the popularity (1)", 0, 10},
        {0}};
    const struct cli_spec spec = {
        "route sweep",
        "DATA.jsonl",
        "Lambda and margin against bytes loaded, waiting and accuracy: the frontier to choose "
        "from. Prompts and\n"
        "decisions are real, residency is simulated (least recently used).",
        "  switchyard route sweep test.jsonl --head router/zoo.head --trace trace.csv\n",
        options,
        1,
        1};
    size_t args;
    struct err e = {0};
    int exit = cli_parse(argc, argv, &spec, &path, &args);
    if (exit != CLI_RUN)
        return exit;
    if (head == NULL)
        return cli_wrong("route sweep", "--head is missing: which head decides?");
    s.tasks_count = (size_t)tasks;
    s.variants = (size_t)variants;
    s.room = (size_t)room;
    s.requests = (size_t)requests;
    enum err_code code = run_sweep(&s, head, encoder, path, &e);
    router_data_done(&s.data);
    router_head_close(&s.head);
    route_encoder_close(&s.encoder);
    free(s.scores);
    free(s.tasks);
    free(s.rank);
    free(s.row);
    return code == ERR_OK ? CLI_DONE : cli_refuse("route sweep", &e);
}
