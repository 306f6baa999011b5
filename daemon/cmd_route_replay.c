/* switchyard route replay: what another policy would have decided, from the log of decisions. Every
 * line holds what its decision was made from, so nothing is guessed; what is not replayed is how
 * other decisions would have changed what is resident later. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_print.h"
#include "router/router.h"

#define LOG_BYTES_MAX ((size_t)4 << 30)

struct totals {
    size_t decisions, priced, same, changed;
    size_t switches[2]; /* [logged, replayed] decisions for an expert that had to load */
    double bytes[2], stall_s[2];
    double score[2]; /* sums of the chosen experts' scores */
};

struct replay {
    const char *expr;      /* NULL = as logged */
    double lambda, margin; /* NAN = as logged */
    struct router_policy *policy;
    char *policy_key; /* of the one that is open */
    struct totals t;
};

static double number(const json_t *j, const char *key)
{
    return json_number_value(json_object_get(j, key));
}

static enum err_code open_policy(struct replay *r, const json_t *line, struct err *e)
{
    const char *logged = json_string_value(json_object_get(line, "policy"));
    const char *expr = r->expr ? r->expr : logged ? logged : "";
    const struct router_policy_options opt = {
        .expr = expr,
        .lambda = isnan(r->lambda) ? number(line, "lambda") : r->lambda,
        .margin = isnan(r->margin) ? number(line, "margin") : r->margin};
    char *key = mem_format("%.17g %.17g %s", opt.lambda, opt.margin, expr);
    if (r->policy_key && strcmp(r->policy_key, key) == 0) {
        free(key);
        return ERR_OK;
    }
    free(r->policy_key);
    r->policy_key = key;
    router_policy_close(&r->policy);
    return router_policy_open(&opt, &r->policy, e);
}

static struct router_candidate candidate_of(const json_t *j)
{
    return (struct router_candidate){.score = (float)number(j, "score"),
                                     .load_s = (float)number(j, "load_s"),
                                     .queue_s = (float)number(j, "queue_s"),
                                     .prefill_s = (float)number(j, "prefill_s"),
                                     .bytes = (float)number(j, "bytes"),
                                     .resident = json_is_true(json_object_get(j, "resident")),
                                     .plain = json_is_true(json_object_get(j, "plain"))};
}

static void count_choice(struct totals *t, int which, const struct router_candidate *c)
{
    t->switches[which] += !c->resident;
    t->bytes[which] += (double)c->bytes;
    t->stall_s[which] += (double)c->load_s + (double)c->queue_s + (double)c->prefill_s;
    t->score[which] += (double)c->score;
}

static enum err_code replay_line(struct replay *r, const json_t *line, struct err *e)
{
    const json_t *list = json_object_get(line, "candidates");
    const char *expert = json_string_value(json_object_get(line, "expert"));
    struct router_candidate c[ROUTER_CANDIDATES_MAX];
    size_t count = BASE_MIN(json_array_size(list), (size_t)ROUTER_CANDIDATES_MAX);
    size_t plain = SIZE_MAX, logged = SIZE_MAX;
    if (!json_is_object(line) || expert == NULL)
        return err_set(e, ERR_INVALID, "it is no line of router.log");
    r->t.decisions++;
    for (size_t i = 0; i < count; i++) {
        const json_t *j = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(j, "expert"));
        c[i] = candidate_of(j);
        if (c[i].plain)
            plain = i;
        if (name != NULL && strcmp(name, expert) == 0)
            logged = i;
    }
    if (plain == SIZE_MAX || logged == SIZE_MAX) {
        r->t.same++; /* a rule, a tool call, an abstention: no price was asked */
        return ERR_OK;
    }
    enum err_code code = open_policy(r, line, e);
    if (code != ERR_OK)
        return code;
    size_t now = router_choose(r->policy, c, count, plain, NULL);
    r->t.priced++;
    r->t.same += now == logged;
    r->t.changed += now != logged;
    count_choice(&r->t, 0, &c[logged]);
    count_choice(&r->t, 1, &c[now]);
    return ERR_OK;
}

static enum err_code replay_file(struct replay *r, const char *path, struct err *e)
{
    struct buf file = {0};
    size_t line_no = 0;
    enum err_code code = file_read(path, LOG_BYTES_MAX, &file, e);
    for (size_t at = 0; code == ERR_OK && at < file.len;) {
        const char *end = memchr(file.data + at, '\n', file.len - at);
        size_t len = end ? (size_t)(end - file.data) - at : file.len - at;
        line_no++;
        if (len > 0) {
            json_error_t why;
            json_t *line = json_loadb(file.data + at, len, 0, &why);
            code = replay_line(r, line, e);
            json_decref(line);
            if (code != ERR_OK)
                err_wrap(e, "%s, line %zu", path, line_no);
        }
        at += len + 1;
    }
    if (code == ERR_OK && r->t.decisions == 0)
        code = err_set(e, ERR_INVALID, "%s has no decisions", path);
    buf_done(&file);
    return code;
}

static void print_totals(const struct totals *t, bool json)
{
    double n = t->priced > 0 ? (double)t->priced : 1.0;
    if (json) {
        json_print_line(json_pack(
            "{s:I,s:I,s:I,s:I,s:{s:I,s:f,s:f,s:f},s:{s:I,s:f,s:f,s:f}}", "decisions",
            (json_int_t)t->decisions, "priced", (json_int_t)t->priced, "same", (json_int_t)t->same,
            "changed", (json_int_t)t->changed, "logged", "switches", (json_int_t)t->switches[0],
            "bytes", t->bytes[0], "stall_s", t->stall_s[0], "mean_score", t->score[0] / n,
            "replayed", "switches", (json_int_t)t->switches[1], "bytes", t->bytes[1], "stall_s",
            t->stall_s[1], "mean_score", t->score[1] / n));
        return;
    }
    printf("%zu decisions, %zu with a price; %zu the same, %zu changed\n", t->decisions, t->priced,
           t->same, t->changed);
    static const char *const name[2] = {"logged", "replayed"};
    for (int i = 0; i < 2; i++)
        printf("  %-9s %zu had to load, %.1f MB, %.3f s waited, mean score %.4f\n", name[i],
               t->switches[i], t->bytes[i] / 1e6, t->stall_s[i], t->score[i] / n);
}

int cmd_route_replay(int argc, char **argv)
{
    const char *path = NULL;
    struct replay r = {.lambda = (double)NAN, .margin = (double)NAN};
    bool json = false;
    const struct cli_option options[] = {
        {"policy", 0, CLI_TEXT, &r.expr, "EXPR",
         "expression instead of the logged one; \"\" = the built-in"},
        {"lambda", 0, CLI_REAL, &r.lambda, "X", "instead of the logged one"},
        {"margin", 0, CLI_REAL, &r.margin, "X", "instead of the logged one"},
        {"json", 0, CLI_FLAG, &json, NULL, "one JSON object"},
        {0}};
    const struct cli_spec spec = {
        "route replay",
        "LOG",
        "Decides every line of a router.log again and says what would have changed: decisions, "
        "loads, bytes,\n"
        "seconds waited. Without options the answers are those of the log.",
        "  switchyard route replay decisions.jsonl --lambda 0.05 --margin 0.2\n"
        "  switchyard route replay decisions.jsonl --policy 'where(resident, score, score - "
        "0.1)'\n",
        options,
        1,
        1};
    size_t args;
    struct err e = {0};
    int exit = cli_parse(argc, argv, &spec, &path, &args);
    if (exit != CLI_RUN)
        return exit;
    enum err_code code = replay_file(&r, path, &e);
    if (code == ERR_OK)
        print_totals(&r.t, json);
    router_policy_close(&r.policy);
    free(r.policy_key);
    return code == ERR_OK ? CLI_DONE : cli_refuse("route replay", &e);
}
