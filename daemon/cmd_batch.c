/* switchyard batch: a file of requests, planned as a whole. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/batch.h"
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_out.h"

static const char about[] =
    "Answers a file of requests, one JSON object per line, in the form of OpenAI's batches:\n"
    "  {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": "
    "{...}}\n"
    "or the body alone. All lines are read and routed first; then every expert's lines run\n"
    "together, resident experts first, so that its weights are loaded once however the input\n"
    "mixes them. Answers are written in the order of the input when all are there; bad and\n"
    "failed lines go to the errors file.\n\n"
    "A run that is interrupted loses nothing: finished lines are kept in OUT.partial, and the\n"
    "same command goes on after them. --explain prints the plan and runs nothing; --analyze\n"
    "runs it and prints what was planned beside what was measured.";

static const char examples[] =
    "  switchyard batch requests.jsonl answers.jsonl\n"
    "  switchyard batch requests.jsonl answers.jsonl --explain\n"
    "  switchyard batch requests.jsonl answers.jsonl --analyze --json --hbm 1GiB";

struct batch_command {
    const char *input, *output, *errors;
    bool explain, analyze, json, restart, force;
    enum batch_order order;
};

/* ---- the plan, for people and for programs
 * ------------------------------------------------------------- */

static void put_cost_text(const char *name, const struct batch_cost *c, bool planned)
{
    char size[32], loads[32] = "";
    if (planned)
        snprintf(loads, sizeof loads, "%llu expert loads", (unsigned long long)c->expert_loads);
    printf("  %-12s%20s  %9llu segments  %s\n", name, loads, (unsigned long long)c->segment_loads,
           size_format(c->bytes, size, sizeof size));
}

static void print_groups(const struct batch_plan *p, bool measured)
{
    printf("\n  %-24s%10s%12s%14s%s\n", "group", "lines", "tokens <=", "to load",
           measured ? "  waited" : "");
    for (size_t i = 0; i < p->groups_count && i < 40; i++) {
        const struct batch_group *g = &p->groups[i];
        char size[32];
        printf("  %-24.24s%10u%12llu%14s%s\n", expert_info(g->expert)->name, g->count,
               (unsigned long long)g->tokens,
               g->load_bytes ? size_format(g->load_bytes, size, sizeof size) : "-",
               !measured   ? ""
               : g->waited ? "  yes"
                           : "  no");
    }
    if (p->groups_count > 40)
        printf("  ... and %zu more\n", p->groups_count - 40);
}

static void print_text(const struct batch_command *b, const struct batch_plan *p,
                       const struct batch_result *r)
{
    char size[32];
    printf("sink           %s, in the order of the input\n"
           "  restore      %s.partial keeps what is finished: %zu lines so far\n"
           "    generate   %zu lines, at most two groups at once\n"
           "      order    %s (%.1f ms)\n"
           "        group  %zu groups of %zu experts, longest lines first\n"
           "          route     %.1f ms\n"
           "            validate  %zu bad lines -> %s\n"
           "              scan      %s: %zu lines, %s (%.1f ms with all above)\n\n",
           b->output, b->output, p->finished_count, p->order_count,
           p->order_kind == BATCH_ORDER_PLANNED ? "resident experts first, then by bytes to load"
                                                : "as they came",
           (double)p->order_ns * 1e-6, p->groups_count, p->experts_used, (double)p->route_ns * 1e-6,
           p->bad_count, b->errors, p->input, p->lines_count,
           size_format(p->input_bytes, size, sizeof size), (double)p->read_ns * 1e-6);
    put_cost_text("first come", &p->arrival, true);
    put_cost_text("planned", &p->planned, true);
    if (r != NULL)
        put_cost_text("measured", &r->measured, false);
    print_groups(p, r != NULL);
    if (r != NULL)
        printf("\n%llu lines in %.2f s: %llu prompt and %llu generated tokens (%.0f tokens/s), "
               "%llu failed\n",
               (unsigned long long)r->done, (double)r->host_ns * 1e-9,
               (unsigned long long)r->prompt_tokens, (unsigned long long)r->completion_tokens,
               (double)(r->prompt_tokens + r->completion_tokens) / ((double)r->host_ns * 1e-9),
               (unsigned long long)r->failed);
}

static void put_cost_json(struct buf *out, const char *name, const struct batch_cost *c,
                          bool planned)
{
    buf_printf(out, ",\"%s\":{", name);
    if (planned)
        buf_printf(out, "\"expert_loads\":%llu,", (unsigned long long)c->expert_loads);
    buf_printf(out, "\"segment_loads\":%llu,\"bytes\":%llu}", (unsigned long long)c->segment_loads,
               (unsigned long long)c->bytes);
}

static void print_json(const struct batch_plan *p, const struct batch_result *r)
{
    struct buf out = {0};
    buf_printf(&out,
               "{\"lines\":%zu,\"bad\":%zu,\"finished_before\":%zu,\"to_run\":%zu,\"experts\":%zu,"
               "\"order\":\"%s\","
               "\"read_ms\":%.3f,\"route_ms\":%.3f,\"order_ms\":%.3f",
               p->lines_count, p->bad_count, p->finished_count, p->order_count, p->experts_used,
               p->order_kind == BATCH_ORDER_PLANNED ? "planned" : "arrival",
               (double)p->read_ns * 1e-6, (double)p->route_ns * 1e-6, (double)p->order_ns * 1e-6);
    put_cost_json(&out, "first_come", &p->arrival, true);
    put_cost_json(&out, "planned", &p->planned, true);
    if (r != NULL) {
        put_cost_json(&out, "measured", &r->measured, false);
        buf_printf(
            &out,
            ",\"done\":%llu,\"failed\":%llu,\"prompt_tokens\":%llu,\"completion_tokens\":%llu,"
            "\"host_ms\":%.3f",
            (unsigned long long)r->done, (unsigned long long)r->failed,
            (unsigned long long)r->prompt_tokens, (unsigned long long)r->completion_tokens,
            (double)r->host_ns * 1e-6);
    }
    buf_puts(&out, ",\"groups\":[");
    for (size_t i = 0; i < p->groups_count; i++) {
        const struct batch_group *g = &p->groups[i];
        buf_puts(&out, i ? ",{\"expert\":" : "{\"expert\":");
        json_put_str(&out, expert_info(g->expert)->name);
        buf_printf(&out, ",\"lines\":%u,\"tokens_max\":%llu,\"load_bytes\":%llu,\"waited\":%s}",
                   g->count, (unsigned long long)g->tokens, (unsigned long long)g->load_bytes,
                   g->waited ? "true" : "false");
    }
    buf_puts(&out, "]}");
    puts(out.data);
    buf_done(&out);
}

static void print_plan(const struct batch_command *b, const struct batch_plan *p,
                       const struct batch_result *r)
{
    if (b->json)
        print_json(p, r);
    else
        print_text(b, p, r);
}

/* ---- running
 * ------------------------------------------------------------------------------------------------
 */

/* The bar counts lines, not bytes, and --json keeps stderr to what went wrong. */
static bool show_lines(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    uint64_t *last_ns = ctx, now = clock_ns();
    if (now - *last_ns < 200000000ull && done < total)
        return true;
    *last_ns = now;
    fprintf(stderr, "\r%-20s %llu / %llu ", what, (unsigned long long)done,
            (unsigned long long)total);
    if (done >= total)
        fputc('\n', stderr);
    return true;
}

static enum err_code wait_ready(struct server *s, struct err *e)
{
    while (!engine_ready(s->engine))
        usleep(1000);
    if (expert_ok(s->generalist, e))
        return ERR_OK;
    return e->code;
}

static enum err_code check_output(const struct batch_command *b, struct err *e)
{
    char *partial = mem_format("%s.partial", b->output);
    if (b->restart)
        unlink(partial);
    bool resumes = access(partial, F_OK) == 0;
    free(partial);
    if (b->explain || b->force || resumes || access(b->output, F_OK) != 0)
        return ERR_OK;
    return err_set(e, ERR_EXISTS,
                   "%s is there already: give --force to replace it once all answers are made, or "
                   "another name",
                   b->output);
}

static enum err_code generate(const struct batch_command *b, struct batch_plan *p,
                              struct batch_journal *j, struct batch_result *result, struct err *e)
{
    uint64_t last_ns = 0;
    const struct progress progress = {show_lines, &last_ns};
    enum err_code code = batch_run(p, j, isatty(STDERR_FILENO) ? &progress : NULL, result, e);
    return code == ERR_OK ? batch_journal_finish(j, p, b->output, b->errors, e) : code;
}

static enum err_code run(const struct batch_command *b, struct server *s, struct err *e)
{
    struct batch_plan p = {.fd = -1};
    struct batch_journal j = {0};
    struct batch_result result = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    const struct progress progress = cli_bar_progress(&bar);
    enum err_code code = wait_ready(s, e);
    if (code == ERR_OK)
        code = batch_plan_open(s, b->input, &progress, &p, e);
    cli_bar_done(&bar);
    if (code == ERR_OK && !b->explain)
        code = batch_journal_open(b->output, &p, &j, e);
    if (code == ERR_OK) {
        batch_plan_order(&p, b->order);
        if (!b->explain)
            code = generate(b, &p, &j, &result, e);
    }
    if (code == ERR_OK && (b->explain || b->analyze))
        print_plan(b, &p, b->explain ? NULL : &result);
    if (code == ERR_OK && (p.bad_count || result.failed) && !b->explain)
        fprintf(stderr, "%zu bad and %llu failed lines: see %s\n", p.bad_count,
                (unsigned long long)result.failed, b->errors);
    batch_journal_close(&j);
    batch_plan_close(&p);
    return code;
}

static int open_and_run(const struct batch_command *b, const struct conf *c)
{
    struct server s;
    struct err e = {0};
    enum err_code code = check_output(b, &e);
    if (code == ERR_OK)
        code = server_open_offline(c, &s, &e);
    if (code == ERR_OK) {
        code = run(b, &s, &e);
        server_close(&s);
    }
    return code == ERR_OK ? CLI_DONE : cli_refuse("batch", &e);
}

int cmd_batch(int argc, char **argv)
{
    struct batch_command b = {0};
    const char *config = NULL, *order = "planned", *files[2] = {NULL, NULL};
    struct cli_setting settings[] = {
        {"store.path", NULL}, {"tiers.hbm", NULL}, {"rdu.threads", NULL}, {"router.head", NULL}};
    const struct cli_option options[] = {
        {"explain", 0, CLI_FLAG, &b.explain, NULL, "print the plan and run nothing"},
        {"analyze", 0, CLI_FLAG, &b.analyze, NULL,
         "run, then print the plan with what was measured"},
        {"json", 0, CLI_FLAG, &b.json, NULL, "the plan as one JSON object"},
        {"errors", 0, CLI_TEXT, &b.errors, "FILE", "bad and failed lines (default: OUT.errors)"},
        {"restart", 0, CLI_FLAG, &b.restart, NULL, "throw away what an interrupted run finished"},
        {"force", 0, CLI_FLAG, &b.force, NULL, "replace OUT if it is there"},
        {"order", 0, CLI_TEXT, &order, "ORDER", "planned, or arrival: as the input has them"},
        {"config", 'c', CLI_TEXT, &config, "FILE", "YAML configuration"},
        {"store", 0, CLI_TEXT, &settings[0].value, "DIR", "where experts are kept"},
        {"hbm", 0, CLI_TEXT, &settings[1].value, "SIZE", "memory for weights and KV (automatic)"},
        {"threads", 't', CLI_TEXT, &settings[2].value, "N", "threads of the node (automatic)"},
        {"head", 0, CLI_TEXT, &settings[3].value, "FILE", "router head"},
        {0}};
    const struct cli_spec spec = {"batch", "IN.jsonl OUT.jsonl", about, examples, options, 2, 2};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, files, &args);
    if (exit != CLI_RUN)
        return exit;
    if (strcmp(order, "planned") != 0 && strcmp(order, "arrival") != 0)
        return cli_wrong("batch", "'%s' is not an order: planned or arrival", order);
    b.order = strcmp(order, "arrival") == 0 ? BATCH_ORDER_ARRIVAL : BATCH_ORDER_PLANNED;
    b.input = files[0];
    b.output = files[1];
    char *errors = mem_format("%s.errors", b.output);
    if (b.errors == NULL)
        b.errors = errors;
    struct conf c;
    struct err e = {0};
    conf_init(&c);
    enum err_code code = cli_load_conf(&c, config, settings, BASE_COUNT(settings), &e);
    exit = code == ERR_OK ? open_and_run(&b, &c) : cli_refuse("batch", &e);
    conf_done(&c);
    free(errors);
    return exit;
}
