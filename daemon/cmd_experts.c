/* switchyard experts: what is in the store. Each verb is a small table of options and one function. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "conf/conf.h"
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_print.h"
#include "experts/experts.h"

#define MORE "\nSee 'switchyard experts --help' for the other verbs."

#define STORE_OPTION(to)                                                                           \
    {                                                                                              \
        "store", 0, CLI_TEXT, &(to), "DIR", "the store (default: store.path of the configuration)" \
    }

/* What every verb does around its own work: open the store, show progress, close, say why not. */
struct job {
    const char *command, *store_dir;
    enum memtier_access access;
    enum err_code (*work)(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e);
    int (*report)(void *ctx); /* the exit code; NULL = nothing to say */
    void *ctx;
};

/* --store, else the configuration's default (environment included). */
static enum err_code open_store(const struct job *j, struct memtier_store **ret, struct err *e)
{
    struct conf c;
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, e);
    if (code == ERR_OK)
        code = memtier_store_open(j->store_dir ? j->store_dir : c.store_path, j->access, ret, e);
    conf_done(&c);
    return code;
}

static int run_job(const struct job *j)
{
    struct memtier_store *store = NULL;
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    enum err_code code = open_store(j, &store, &e);
    if (code == ERR_OK)
        code = j->work(store, &progress, j->ctx, &e);
    cli_bar_done(&bar);
    memtier_store_close(&store);
    if (code != ERR_OK)
        return cli_refuse(j->command, &e);
    return j->report ? j->report(j->ctx) : CLI_DONE;
}

/* ---- add ----------------------------------------------------------------------------------------------- */

struct add {
    struct expert_add_options options;
    struct expert_add_report report;
    const char *template_file;
    struct buf template_text;
    bool json;
};

static enum err_code add_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    struct add *a = ctx;
    enum err_code code = ERR_OK;
    if (a->template_file)
        code = file_read(a->template_file, BASE_MIB, &a->template_text, e);
    a->options.template_source = a->template_file ? a->template_text.data : NULL;
    return code == ERR_OK ? experts_add(store, &a->options, p, &a->report, e) : code;
}

static int add_report(void *ctx)
{
    const struct add *a = ctx;
    const struct expert_add_report *r = &a->report;
    char written[32], shared[32];
    if (a->json)
        json_print_line(json_pack("{s:s,s:I,s:I,s:I,s:i,s:i}", "name", a->options.name, "bytes_read",
                             (json_int_t)r->bytes_read, "bytes_written", (json_int_t)r->bytes_written,
                             "bytes_shared", (json_int_t)r->bytes_shared, "segments", (int)r->segments,
                             "segments_shared", (int)r->segments_shared));
    else
        printf("added %s: %u segments, %s written, %s already in the store\n", a->options.name, r->segments,
               size_format(r->bytes_written, written, sizeof(written)),
               size_format(r->bytes_shared, shared, sizeof(shared)));
    return CLI_DONE;
}

static int verb_add(int argc, char **argv)
{
    const char *store_dir = NULL, *file = NULL;
    struct cli_list aliases = {0};
    struct add a = {.options = {.scale = 1}};
    const struct cli_option options[] = {
        {"name", 'n', CLI_TEXT, &a.options.name, "NAME", "what clients write as `model` (required)"},
        {"base", 'b', CLI_TEXT, &a.options.base, "NAME", "adapters: the expert whose weights they sit on"},
        {"scale", 's', CLI_REAL, &a.options.scale, "X", "adapters: factor of the delta (default 1)", -1000, 1000},
        {"description", 'd', CLI_TEXT, &a.options.description, "TEXT", "one sentence for people and routers"},
        {"system", 0, CLI_TEXT, &a.options.system, "TEXT", "system prompt when the client sends none"},
        {"template", 0, CLI_TEXT, &a.template_file, "FILE", "Jinja chat template instead of the model's own"},
        {"alias", 'a', CLI_LIST, &aliases, "NAME", "a further name; may be given more than once"},
        {"licence", 0, CLI_TEXT, &a.options.licence, "TEXT", "shown in the list"},
        STORE_OPTION(store_dir),
        {"json", 0, CLI_FLAG, &a.json, NULL, "print the report as one JSON object"},
        {0}};
    const struct cli_spec spec = {
        "experts add", "FILE --name NAME",
        "Imports a GGUF model or a GGUF LoRA adapter into the store. Weights are re-ordered for the kernels\n"
        "and kept bit-exact; what the store already has is shared, not written again. A file that cannot\n"
        "serve is refused before anything is written, and an import that is interrupted leaves the store\n"
        "as it was." MORE,
        "  switchyard experts add SmolLM2.gguf --name smollm2\n"
        "  switchyard experts add sql-lora.gguf --name text2sql --base smollm2\n",
        options, 1, 1};
    int exit = cli_parse(argc, argv, &spec, &file, &(size_t){0});
    if (exit == CLI_RUN && a.options.name == NULL)
        exit = cli_wrong("experts add", "--name is missing: what should clients call it?");
    a.options.path = file;
    a.options.aliases = aliases.items;
    a.options.aliases_count = aliases.count;
    if (exit == CLI_RUN)
        exit = run_job(&(struct job){"experts add", store_dir, MEMTIER_WRITE, add_work, add_report, &a});
    buf_done(&a.template_text);
    cli_list_done(&aliases);
    return exit;
}

/* ---- list ---------------------------------------------------------------------------------------------- */

static json_t *info_json(const struct expert_info *x)
{
    json_t *aliases = json_array();
    for (size_t i = 0; i < x->aliases_count; i++)
        json_array_append_new(aliases, json_string(x->aliases[i]));
    return json_pack("{s:s,s:s?,s:o,s:s?,s:s?,s:s?,s:b,s:f,s:I,s:I,s:I,s:I,s:s?,s:I}", "name", x->name,
                     "base", x->base, "aliases", aliases, "architecture", x->architecture, "types", x->types,
                     "description", x->description, "adapter", x->is_adapter, "scale", x->scale, "bytes",
                     (json_int_t)x->bytes, "parameters", (json_int_t)x->parameters, "context",
                     (json_int_t)x->context, "layers", (json_int_t)x->layers, "licence", x->licence,
                     "created", (json_int_t)x->created_s);
}

static void print_list(const struct expert_info *list, size_t count)
{
    char bytes[32];
    printf("%-24s %-20s %-10s %10s  %s\n", "NAME", "BASE", "TYPES", "SIZE", "DESCRIPTION");
    for (size_t i = 0; i < count; i++) {
        const struct expert_info *x = &list[i];
        printf("%-24s %-20s %-10s %10s  %.80s\n", x->name, x->base && *x->base ? x->base : "-",
               x->types ? x->types : "-", size_format(x->bytes, bytes, sizeof(bytes)),
               x->description ? x->description : "");
    }
}

struct list {
    struct expert_info *experts;
    size_t count;
    bool json;
};

static enum err_code list_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    struct list *l = ctx;
    (void)p;
    return experts_list(store, &l->experts, &l->count, e);
}

static int list_report(void *ctx)
{
    const struct list *l = ctx;
    for (size_t i = 0; l->json && i < l->count; i++)
        json_print_line(info_json(&l->experts[i]));
    if (!l->json)
        print_list(l->experts, l->count);
    return CLI_DONE;
}

static int verb_list(int argc, char **argv)
{
    const char *store_dir = NULL;
    struct list l = {0};
    const struct cli_option options[] = {
        STORE_OPTION(store_dir), {"json", 0, CLI_FLAG, &l.json, NULL, "one JSON object per line"}, {0}};
    const struct cli_spec spec = {"experts list", "", "Lists the experts of the store." MORE,
                                  "  switchyard experts list --json\n", options, 0, 0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit == CLI_RUN)
        exit = run_job(&(struct job){"experts list", store_dir, MEMTIER_READ, list_work, list_report, &l});
    experts_list_done(l.experts, l.count);
    return exit;
}

/* ---- verify, gc, rm ------------------------------------------------------------------------------------- */

struct verify {
    struct memtier_verify_report report;
    bool json;
};

static enum err_code verify_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    return memtier_store_verify(store, p, &((struct verify *)ctx)->report, e);
}

static int verify_report(void *ctx)
{
    const struct verify *v = ctx;
    const struct memtier_verify_report *r = &v->report;
    char bytes[32];
    if (v->json)
        json_print_line(json_pack("{s:I,s:I,s:I,s:s}", "segments", (json_int_t)r->segments, "bytes",
                             (json_int_t)r->bytes, "bad", (json_int_t)r->bad, "first_bad", r->first_bad));
    else
        printf("%llu segments, %s, %llu bad%s%s\n", (unsigned long long)r->segments,
               size_format(r->bytes, bytes, sizeof(bytes)), (unsigned long long)r->bad, r->bad ? ": " : "",
               r->first_bad);
    return r->bad ? CLI_REFUSED : CLI_DONE;
}

static int verb_verify(int argc, char **argv)
{
    const char *store_dir = NULL;
    struct verify v = {0};
    const struct cli_option options[] = {
        STORE_OPTION(store_dir), {"json", 0, CLI_FLAG, &v.json, NULL, "print the report as one JSON object"}, {0}};
    const struct cli_spec spec = {"experts verify", "",
                                  "Reads every segment of the store and checks it against its hash. Exit code 1 "
                                  "if one is bad." MORE,
                                  "  switchyard experts verify\n", options, 0, 0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit != CLI_RUN)
        return exit;
    return run_job(&(struct job){"experts verify", store_dir, MEMTIER_READ, verify_work, verify_report, &v});
}

struct gc {
    struct memtier_gc_report report;
    bool json;
};

static enum err_code gc_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    (void)p;
    return memtier_store_gc(store, &((struct gc *)ctx)->report, e);
}

static int gc_report(void *ctx)
{
    const struct gc *g = ctx;
    char bytes[32];
    if (g->json)
        json_print_line(json_pack("{s:I,s:I}", "files_removed", (json_int_t)g->report.files_removed,
                             "bytes_removed", (json_int_t)g->report.bytes_removed));
    else
        printf("%llu files removed, %s freed\n", (unsigned long long)g->report.files_removed,
               size_format(g->report.bytes_removed, bytes, sizeof(bytes)));
    return CLI_DONE;
}

static int verb_gc(int argc, char **argv)
{
    const char *store_dir = NULL;
    struct gc g = {0};
    const struct cli_option options[] = {
        STORE_OPTION(store_dir), {"json", 0, CLI_FLAG, &g.json, NULL, "print the report as one JSON object"}, {0}};
    const struct cli_spec spec = {"experts gc", "",
                                  "Removes data files that no expert refers to: what interrupted imports and "
                                  "removed experts left." MORE,
                                  "  switchyard experts gc\n", options, 0, 0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit != CLI_RUN)
        return exit;
    return run_job(&(struct job){"experts gc", store_dir, MEMTIER_WRITE, gc_work, gc_report, &g});
}

static enum err_code rm_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    (void)p;
    return experts_remove(store, ctx, e);
}

static int rm_report(void *ctx)
{
    printf("removed %s\n", (const char *)ctx);
    return CLI_DONE;
}

static int verb_rm(int argc, char **argv)
{
    const char *store_dir = NULL, *name = NULL;
    const struct cli_option options[] = {STORE_OPTION(store_dir), {0}};
    const struct cli_spec spec = {"experts rm", "NAME",
                                  "Removes an expert. Weights that another expert uses stay; 'experts gc' frees "
                                  "the rest." MORE,
                                  "  switchyard experts rm text2sql\n", options, 1, 1};
    int exit = cli_parse(argc, argv, &spec, &name, &(size_t){0});
    if (exit != CLI_RUN)
        return exit;
    return run_job(&(struct job){"experts rm", store_dir, MEMTIER_WRITE, rm_work, rm_report, (void *)name});
}

/* ---- merge, export --------------------------------------------------------------------------------------- */

typedef enum err_code write_fn(struct memtier_store *store, const char *name, const char *out,
                               const struct progress *p, struct err *e);
struct written {
    const char *name, *out;
    write_fn *write;
};

static enum err_code write_work(struct memtier_store *store, const struct progress *p, void *ctx, struct err *e)
{
    const struct written *w = ctx;
    return w->write(store, w->name, w->out, p, e);
}

static int write_report(void *ctx)
{
    printf("wrote %s\n", ((const struct written *)ctx)->out);
    return CLI_DONE;
}

static int verb_write(int argc, char **argv, const char *command, const char *about, const char *example,
                      write_fn *write)
{
    const char *store_dir = NULL;
    struct written w = {.write = write};
    const struct cli_option options[] = {
        {"out", 'o', CLI_TEXT, &w.out, "FILE", "the GGUF file to write (required; written whole or not at all)"},
        STORE_OPTION(store_dir),
        {0}};
    const struct cli_spec spec = {command, "NAME --out FILE", about, example, options, 1, 1};
    int exit = cli_parse(argc, argv, &spec, &w.name, &(size_t){0});
    if (exit != CLI_RUN)
        return exit;
    if (w.out == NULL)
        return cli_wrong(command, "--out is missing: which file should be written?");
    return run_job(&(struct job){command, store_dir, MEMTIER_READ, write_work, write_report, &w});
}

static int verb_merge(int argc, char **argv)
{
    return verb_write(argc, argv, "experts merge",
                      "Writes base and adapter of an expert as one full model in Q8_0. Unmerged adapters share\n"
                      "their base in memory and in every batch; merge when an expert must stand alone." MORE,
                      "  switchyard experts merge text2sql --out text2sql-merged.gguf\n", experts_merge);
}

static int verb_export(int argc, char **argv)
{
    return verb_write(argc, argv, "experts export",
                      "Gives back the GGUF file an expert was imported from, tensors bit for bit." MORE,
                      "  switchyard experts export text2sql --out text2sql.gguf\n", experts_export);
}

/* ---- the verbs -------------------------------------------------------------------------------------------- */

static const struct cli_verb verbs[] = {
    {"add", verb_add, "import a GGUF model or LoRA adapter"},
    {"list", verb_list, "what the store has"},
    {"verify", verb_verify, "check every byte against its hash"},
    {"merge", verb_merge, "write base + adapter as one Q8_0 model"},
    {"export", verb_export, "give back the imported file"},
    {"rm", verb_rm, "remove an expert"},
    {"gc", verb_gc, "free what no expert uses"},
};

static const char verbs_about[] =
    "Experts are what clients can name as `model`: a base model, or a LoRA adapter over one. They\n"
    "live in a store on disk, from which the daemon brings them into memory as needed.";

int cmd_experts(int argc, char **argv)
{
    return cli_run_verb("experts", verbs_about, verbs, BASE_COUNT(verbs), argc, argv);
}
