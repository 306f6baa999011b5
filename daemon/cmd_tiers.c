/* switchyard tiers: the three-tier memory of a configuration (plan) and of a running server (status
 * and orders). */
#include <curl/curl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/admin.h"
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/plan.h"

/* ---- plan ----------------------------------------------------------------------------------- */

static int verb_plan(int argc, char **argv)
{
    const char *config = NULL, *hbm = NULL, *ddr = NULL, *store = NULL;
    bool json = false, quick = false;
    const struct cli_option options[] = {
        {"config", 'c', CLI_TEXT, &config, "FILE", "YAML configuration (none: the defaults)"},
        {"store", 0, CLI_TEXT, &store, "DIR",
         "the store (default: store.path of the configuration)"},
        {"hbm", 0, CLI_TEXT, &hbm, "SIZE", "instead of tiers.hbm"},
        {"ddr", 0, CLI_TEXT, &ddr, "SIZE", "instead of tiers.ddr"},
        {"quick", 0, CLI_FLAG, &quick, NULL, "do not read 64 MiB to time the device"},
        {"json", 0, CLI_FLAG, &json, NULL, "one JSON object"},
        {NULL}};
    const struct cli_spec spec = {"tiers plan",
                                  "",
                                  "Says what of the store fits into which tier, what is held, and "
                                  "what a cold load of each expert\n"
                                  "takes at the device's rate, measured now. Budgets that cannot "
                                  "work are refused with the numbers\n"
                                  "that would (exit code 1). 'serve' refuses holds that cannot work, and warns of the rest.",
                                  "  switchyard tiers plan --config switchyard.yaml\n  switchyard "
                                  "tiers plan --hbm 512MiB --json\n",
                                  options,
                                  0,
                                  0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit != CLI_RUN)
        return exit;
    const struct cli_setting settings[] = {
        {"store.path", store}, {"tiers.hbm", hbm}, {"tiers.ddr", ddr}};
    struct conf c;
    struct err e = {0};
    struct plan p = {0};
    struct buf out = {0};
    conf_init(&c);
    enum err_code code = cli_load_conf(&c, config, settings, BASE_COUNT(settings), &e);
    if (code == ERR_OK)
        code = plan_make(&c, !quick, &p, &e);
    if (code == ERR_OK) {
        if (json)
            plan_put_json(&p, &out);
        else
            plan_put_text(&p, &out);
        fwrite(out.data, 1, out.len, stdout);
        if (p.refusal.code != ERR_OK) {
            e = p.refusal;
            code = e.code;
        }
    }
    buf_done(&out);
    plan_done(&p);
    conf_done(&c);
    return code == ERR_OK ? CLI_DONE : cli_refuse("tiers plan", &e);
}

/* ---- talking to the server --------------------------------------------------------------------
 */

struct target {
    const char *config, *store, *url, *key;
};

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    buf_append(ctx, data, size * n);
    return size * n;
}

/* The socket of the configuration's store, or the address that was given. `body` NULL = GET. */
static enum err_code ask(const struct target *t, const char *path, const char *body,
                         struct buf *ret, struct err *e)
{
    struct conf c;
    const struct cli_setting settings[] = {{"store.path", t->store}};
    conf_init(&c);
    enum err_code code = cli_load_conf(&c, t->config, settings, BASE_COUNT(settings), e);
    char *socket = admin_socket_path(c.store_path);
    const char *key = t->key ? t->key : c.server_api_keys_count ? c.server_api_keys[0] : NULL;
    char *url = mem_format("%s%s", t->url ? t->url : "http://localhost", path);
    char *auth = key ? mem_format("Authorization: Bearer %s", key) : NULL;
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (auth)
        headers = curl_slist_append(headers, auth);
    long status = 0;
    CURL *h = curl_easy_init();
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, ret);
    if (t->url == NULL)
        curl_easy_setopt(h, CURLOPT_UNIX_SOCKET_PATH, socket);
    if (body)
        curl_easy_setopt(h, CURLOPT_POSTFIELDS, body);
    CURLcode rc = code == ERR_OK ? curl_easy_perform(h) : CURLE_OK;
    curl_easy_getinfo(h, CURLINFO_RESPONSE_CODE, &status);
    if (code == ERR_OK && rc != CURLE_OK)
        code =
            err_set(e, ERR_IO,
                    "no server answers at %s (%s): is 'switchyard serve' running over this store?",
                    t->url ? t->url : socket, curl_easy_strerror(rc));
    if (code == ERR_OK && status != 200) {
        json_t *j = json_loadb(ret->data ? ret->data : "", ret->len, 0, NULL);
        const char *why =
            json_string_value(json_object_get(json_object_get(j, "error"), "message"));
        code = err_set(e, ERR_INVALID, "%s",
                       why ? why : "the server answers with an error that is not JSON");
        json_decref(j);
    }
    curl_easy_cleanup(h);
    curl_slist_free_all(headers);
    free(auth);
    free(url);
    free(socket);
    conf_done(&c);
    return code;
}

#define TARGET_OPTIONS(t)                                                                          \
    {"config",    'c',    CLI_TEXT,                                                                \
     &(t).config, "FILE", "the server's configuration (none: the defaults)"},                      \
        {"store", 0, CLI_TEXT, &(t).store, "DIR", "its store, whose admin.sock is asked"},         \
        {"url",    0,     CLI_TEXT,                                                                \
         &(t).url, "URL", "its server.admin_port instead: http://127.0.0.1:PORT"},                 \
    {                                                                                              \
        "key", 0, CLI_TEXT, &(t).key, "KEY", "API key (default: the configuration's first)"        \
    }

/* ---- status -----------------------------------------------------------------------------------
 */

static double number(const json_t *j, const char *a, const char *b)
{
    const json_t *v = b ? json_object_get(json_object_get(j, a), b) : json_object_get(j, a);
    return json_number_value(v);
}

static const char *bytes(const json_t *j, const char *a, const char *b, char *to)
{
    return size_format((uint64_t)number(j, a, b), to, 32);
}

static void print_experts(const json_t *experts)
{
    size_t i;
    json_t *x, *v;
    char a[32];
    printf("\n%-28s%12s%12s%12s\n", "EXPERT (own bytes)", "HBM", "DDR", "NVME");
    json_array_foreach((json_t *)experts, i, x)
    {
        static const char *const tiers[] = {"hbm", "ddr", "nvme"};
        printf("%-28s", json_string_value(json_object_get(x, "name")));
        for (size_t k = 0; k < BASE_COUNT(tiers); k++) {
            v = json_object_get(json_object_get(x, "bytes"), tiers[k]);
            printf("%12s", v ? size_format((uint64_t)json_integer_value(v), a, 32) : "-");
        }
        const char *error = json_string_value(json_object_get(x, "error"));
        printf("%s%s%s\n", json_is_true(json_object_get(x, "held")) ? "  held" : "",
               error ? "  " : "", error ? error : "");
    }
}

static void print_status(const json_t *j)
{
    char a[4][32];
    size_t i;
    json_t *m;
    printf("hbm     %s of %s (peak %s); held %s, pinned %s, %d KV pages; longest free run %s, "
           "fragmentation %.0f %%\n",
           bytes(j, "hbm", "used", a[0]), bytes(j, "hbm", "budget", a[1]),
           bytes(j, "hbm", "peak", a[2]), bytes(j, "hbm", "held", a[3]),
           bytes(j, "hbm", "pinned", (char[32]){0}), (int)number(j, "hbm", "kv_pages"),
           bytes(j, "hbm", "largest_free", (char[32]){0}), 100 * number(j, "hbm", "fragmentation"));
    if (number(j, "ddr", "budget") > 0)
        printf("ddr     %s of %s\n", bytes(j, "ddr", "used", a[0]),
               bytes(j, "ddr", "budget", a[1]));
    printf("nvme    %s in %s\n", bytes(j, "nvme", "used", a[0]),
           json_string_value(json_object_get(json_object_get(j, "nvme"), "path")));
    printf("loader  %s\n", json_string_value(json_object_get(j, "loader")));
    printf("policy  %s, verify %s\n", json_string_value(json_object_get(j, "policy")),
           json_string_value(json_object_get(j, "verify")));
    printf("hits    hbm %.0f, ddr %.0f; misses hbm %.0f; evictions hbm %.0f, ddr %.0f\n",
           number(j, "hits", "hbm"), number(j, "hits", "ddr"), number(j, "misses", "hbm"),
           number(j, "evictions", "hbm"), number(j, "evictions", "ddr"));
    json_array_foreach(json_object_get(j, "loads"), i, m)
    {
        if (number(m, "count", NULL) > 0)
            printf("moved   %s -> %s: %.0f segments, %s, %.2f GB/s, p99 %.1f ms\n",
                   json_string_value(json_object_get(m, "from")),
                   json_string_value(json_object_get(m, "to")), number(m, "count", NULL),
                   bytes(m, "bytes", NULL, a[0]), number(m, "gb_per_s", NULL),
                   number(m, "ms_p99", NULL));
    }
    printf("waiting %.0f requests for weights; prefetch begun %.0f, used %.0f, wasted %.0f; "
           "retries %.0f, failed "
           "%.0f; expired %.0f\n",
           number(j, "requests_loading", NULL), number(j, "prefetch", "begun"),
           number(j, "prefetch", "used"), number(j, "prefetch", "wasted"),
           number(j, "retries", NULL), number(j, "failed", NULL), number(j, "expired", NULL));
    print_experts(json_object_get(j, "experts"));
}

static int verb_status(int argc, char **argv)
{
    struct target t = {0};
    bool json = false;
    const struct cli_option options[] = {
        TARGET_OPTIONS(t),
        {"json", 0, CLI_FLAG, &json, NULL, "the server's JSON object as it is"},
        {NULL}};
    const struct cli_spec spec = {
        "tiers status",
        "",
        "Where a running server's experts are, what its memory did, and which way it reads\n"
        "the disk. Asks the socket admin.sock in the store, or server.admin_port.",
        "  switchyard tiers status\n  switchyard tiers status --json | jq .hbm\n",
        options,
        0,
        0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit != CLI_RUN)
        return exit;
    struct err e = {0};
    struct buf body = {0};
    enum err_code code = ask(&t, "/admin/tiers", NULL, &body, &e);
    json_t *j = code == ERR_OK ? json_loadb(body.data, body.len, 0, NULL) : NULL;
    if (code == ERR_OK && j == NULL)
        code = err_set(&e, ERR_IO, "the server does not answer with JSON");
    if (code == ERR_OK && json)
        fwrite(body.data, 1, body.len, stdout);
    else if (code == ERR_OK)
        print_status(j);
    json_decref(j);
    buf_done(&body);
    return code == ERR_OK ? CLI_DONE : cli_refuse("tiers status", &e);
}

/* ---- orders -------------------------------------------------------------------------------------
 */

static int order(int argc, char **argv, const char *argument, const char *about, bool budget)
{
    struct target t = {0};
    const char *name = NULL, *to = NULL;
    bool unload = strcmp(argv[0], "unload") == 0;
    char *command = mem_format("tiers %s", argv[0]);
    char *example = mem_format("  switchyard tiers %s %s\n", argv[0], budget ? "2GiB" : "text2sql");
    const struct cli_option both[] = {TARGET_OPTIONS(t), {NULL}};
    const struct cli_option with_to[] = {
        TARGET_OPTIONS(t),
        {"to", 0, CLI_TEXT, &to, "TIER", "ddr (default, where there is one) or nvme"},
        {NULL}};
    const struct cli_spec spec = {command, argument, about, example, unload ? with_to : both, 1, 1};
    int exit = cli_parse(argc, argv, &spec, &name, &(size_t){0});
    struct err e = {0};
    struct buf body = {0};
    if (exit == CLI_RUN) {
        char *path =
            budget ? mem_strdup("/admin/tiers") : mem_format("/admin/experts/%s/%s", name, argv[0]);
        char *text = budget ? mem_format("{\"hbm\":\"%s\"}", name)
                     : to   ? mem_format("{\"to\":\"%s\"}", to)
                            : mem_strdup("{}");
        enum err_code code = ask(&t, path, text, &body, &e);
        if (code == ERR_OK && !budget)
            fwrite(body.data, 1, body.len, stdout);
        else if (code == ERR_OK)
            printf("tiers.hbm is %s; what is in use above it leaves as it is given back\n", name);
        exit = code == ERR_OK ? CLI_DONE : cli_refuse(command, &e);
        free(path);
        free(text);
    }
    buf_done(&body);
    free(command);
    free(example);
    return exit;
}

static int verb_load(int argc, char **argv)
{
    return order(argc, argv, "EXPERT",
                 "Brings an expert into hbm and says from where, how much and how long.", false);
}

static int verb_unload(int argc, char **argv)
{
    return order(argc, argv, "EXPERT",
                 "Takes what is the expert's own out of hbm; not what is held or in use.", false);
}

static int verb_hold(int argc, char **argv)
{
    return order(argc, argv, "EXPERT",
                 "Brings an expert into hbm and keeps it there until it is unheld.", false);
}

static int verb_unhold(int argc, char **argv)
{
    return order(argc, argv, "EXPERT", "Lets an expert be evicted again.", false);
}

static int verb_prefetch(int argc, char **argv)
{
    return order(argc, argv, "EXPERT",
                 "Begins to load an expert into free room, behind every load in demand.", false);
}

static int verb_budget(int argc, char **argv)
{
    return order(
        argc, argv, "SIZE",
        "Changes tiers.hbm of a running server. A smaller budget is reached as requests end;\n"
        "none is dropped.",
        true);
}

/* ---- the verbs
 * ------------------------------------------------------------------------------------ */

static const struct cli_verb verbs[] = {
    {"plan", verb_plan, "what fits where, what a load costs, and what cannot work"},
    {"status", verb_status, "where a running server's experts are, and what its memory did"},
    {"load", verb_load, "bring an expert into hbm"},
    {"unload", verb_unload, "take one out of hbm"},
    {"hold", verb_hold, "load and never evict"},
    {"unhold", verb_unhold, "may be evicted again"},
    {"prefetch", verb_prefetch, "begin to load into free room"},
    {"budget", verb_budget, "change tiers.hbm of a running server"},
};

static const char verbs_about[] =
    "Experts live on disk (nvme), in an optional second memory (ddr) and in the memory that kernels\n"
    "read (hbm). Plans are of a configuration; everything else asks a running server.";

int cmd_tiers(int argc, char **argv)
{
    return cli_run_verb("tiers", verbs_about, verbs, BASE_COUNT(verbs), argc, argv);
}
