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

/* The store of a command: --store, else the configuration's default (environment included). */
static enum err_code open_store(const char *dir, enum memtier_access access, struct memtier_store **ret,
                                struct err *e)
{
    struct conf c;
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, e);
    if (code == ERR_OK)
        code = memtier_store_open(dir ? dir : c.store_path, access, ret, e);
    conf_done(&c);
    return code;
}

/* ---- add ----------------------------------------------------------------------------------------------- */

static void report_add(const struct expert_add_options *add, const struct expert_add_report *r, bool json)
{
    char written[32], shared[32];
    if (json) {
        json_print_line(json_pack("{s:s,s:I,s:I,s:I,s:i,s:i}", "name", add->name, "bytes_read",
                             (json_int_t)r->bytes_read, "bytes_written", (json_int_t)r->bytes_written,
                             "bytes_shared", (json_int_t)r->bytes_shared, "segments", (int)r->segments,
                             "segments_shared", (int)r->segments_shared));
        return;
    }
    printf("added %s: %u segments, %s written, %s already in the store\n", add->name, r->segments,
           size_format(r->bytes_written, written, sizeof(written)),
           size_format(r->bytes_shared, shared, sizeof(shared)));
}

static int verb_add(int argc, char **argv)
{
    const char *store_dir = NULL, *file = NULL, *template_file = NULL;
    struct cli_list aliases = {0};
    bool json = false;
    struct expert_add_options add = {0};
    double scale = 1;
    const struct cli_option options[] = {
        {"name", 'n', CLI_TEXT, &add.name, "NAME", "what clients write as `model` (required)"},
        {"base", 'b', CLI_TEXT, &add.base, "NAME", "adapters: the expert whose weights they sit on"},
        {"scale", 's', CLI_REAL, &scale, "X", "adapters: factor of the delta (default 1)", -1000, 1000},
        {"description", 'd', CLI_TEXT, &add.description, "TEXT", "one sentence for people and routers"},
        {"system", 0, CLI_TEXT, &add.system, "TEXT", "system prompt when the client sends none"},
        {"template", 0, CLI_TEXT, &template_file, "FILE", "Jinja chat template instead of the model's own"},
        {"alias", 'a', CLI_LIST, &aliases, "NAME", "a further name; may be given more than once"},
        {"licence", 0, CLI_TEXT, &add.licence, "TEXT", "shown in the list"},
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {"json", 0, CLI_FLAG, &json, NULL, "print the report as one JSON object"},
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
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &file, &args);
    if (exit != CLI_RUN)
        return exit;
    if (add.name == NULL)
        return cli_wrong("experts add", "--name is missing: what should clients call it?");
    struct memtier_store *store = NULL;
    struct err e = {0};
    struct buf template_text = {0};
    struct expert_add_report report = {0};
    enum err_code code = ERR_OK;
    if (template_file)
        code = file_read(template_file, BASE_MIB, &template_text, &e);
    if (code == ERR_OK)
        code = open_store(store_dir, MEMTIER_WRITE, &store, &e);
    add.path = file;
    add.scale = scale;
    add.template_source = template_file ? template_text.data : NULL;
    add.aliases = aliases.items;
    add.aliases_count = aliases.count;
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    if (code == ERR_OK)
        code = experts_add(store, &add, &progress, &report, &e);
    cli_bar_done(&bar);
    memtier_store_close(&store);
    buf_done(&template_text);
    cli_list_done(&aliases);
    if (code != ERR_OK)
        return cli_refuse("experts add", &e);
    report_add(&add, &report, json);
    return CLI_DONE;
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

static int verb_list(int argc, char **argv)
{
    const char *store_dir = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {"json", 0, CLI_FLAG, &json, NULL, "one JSON object per line"},
        {0}};
    const struct cli_spec spec = {"experts list", "", "Lists the experts of the store." MORE,
                                  "  switchyard experts list --json\n", options, 0, 0};
    size_t args, count = 0;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit != CLI_RUN)
        return exit;
    struct memtier_store *store = NULL;
    struct expert_info *list = NULL;
    struct err e = {0};
    enum err_code code = open_store(store_dir, MEMTIER_READ, &store, &e);
    if (code == ERR_OK)
        code = experts_list(store, &list, &count, &e);
    if (code == ERR_OK && json)
        for (size_t i = 0; i < count; i++)
            json_print_line(info_json(&list[i]));
    else if (code == ERR_OK)
        print_list(list, count);
    if (list)
        experts_list_done(list, count);
    memtier_store_close(&store);
    return code == ERR_OK ? CLI_DONE : cli_refuse("experts list", &e);
}

/* ---- verify, gc, rm ------------------------------------------------------------------------------------- */

static int verb_verify(int argc, char **argv)
{
    const char *store_dir = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {"json", 0, CLI_FLAG, &json, NULL, "print the report as one JSON object"},
        {0}};
    const struct cli_spec spec = {"experts verify", "",
                                  "Reads every segment of the store and checks it against its hash. Exit code 1 "
                                  "if one is bad." MORE,
                                  "  switchyard experts verify\n", options, 0, 0};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit != CLI_RUN)
        return exit;
    struct memtier_store *store = NULL;
    struct memtier_verify_report r = {0};
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    enum err_code code = open_store(store_dir, MEMTIER_READ, &store, &e);
    if (code == ERR_OK)
        code = memtier_store_verify(store, &progress, &r, &e);
    cli_bar_done(&bar);
    memtier_store_close(&store);
    if (code != ERR_OK)
        return cli_refuse("experts verify", &e);
    char bytes[32];
    if (json)
        json_print_line(json_pack("{s:I,s:I,s:I,s:s}", "segments", (json_int_t)r.segments, "bytes",
                             (json_int_t)r.bytes, "bad", (json_int_t)r.bad, "first_bad", r.first_bad));
    else
        printf("%llu segments, %s, %llu bad%s%s\n", (unsigned long long)r.segments,
               size_format(r.bytes, bytes, sizeof(bytes)), (unsigned long long)r.bad, r.bad ? ": " : "",
               r.first_bad);
    return r.bad ? CLI_REFUSED : CLI_DONE;
}

static int verb_gc(int argc, char **argv)
{
    const char *store_dir = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {"json", 0, CLI_FLAG, &json, NULL, "print the report as one JSON object"},
        {0}};
    const struct cli_spec spec = {"experts gc", "",
                                  "Removes data files that no expert refers to: what interrupted imports and "
                                  "removed experts left." MORE,
                                  "  switchyard experts gc\n", options, 0, 0};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, NULL, &args);
    if (exit != CLI_RUN)
        return exit;
    struct memtier_store *store = NULL;
    struct memtier_gc_report r = {0};
    struct err e = {0};
    enum err_code code = open_store(store_dir, MEMTIER_WRITE, &store, &e);
    if (code == ERR_OK)
        code = memtier_store_gc(store, &r, &e);
    memtier_store_close(&store);
    if (code != ERR_OK)
        return cli_refuse("experts gc", &e);
    char bytes[32];
    if (json)
        json_print_line(json_pack("{s:I,s:I}", "files_removed", (json_int_t)r.files_removed, "bytes_removed",
                             (json_int_t)r.bytes_removed));
    else
        printf("%llu files removed, %s freed\n", (unsigned long long)r.files_removed,
               size_format(r.bytes_removed, bytes, sizeof(bytes)));
    return CLI_DONE;
}

static int verb_rm(int argc, char **argv)
{
    const char *store_dir = NULL, *name = NULL;
    const struct cli_option options[] = {
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {0}};
    const struct cli_spec spec = {"experts rm", "NAME",
                                  "Removes an expert. Weights that another expert uses stay; 'experts gc' frees "
                                  "the rest." MORE,
                                  "  switchyard experts rm text2sql\n", options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &name, &args);
    if (exit != CLI_RUN)
        return exit;
    struct memtier_store *store = NULL;
    struct err e = {0};
    enum err_code code = open_store(store_dir, MEMTIER_WRITE, &store, &e);
    if (code == ERR_OK)
        code = experts_remove(store, name, &e);
    memtier_store_close(&store);
    if (code != ERR_OK)
        return cli_refuse("experts rm", &e);
    printf("removed %s\n", name);
    return CLI_DONE;
}

/* ---- merge, export --------------------------------------------------------------------------------------- */

typedef enum err_code write_fn(struct memtier_store *store, const char *name, const char *out,
                               const struct progress *p, struct err *e);

static int verb_write(int argc, char **argv, const char *command, const char *about, const char *example,
                      write_fn *write)
{
    const char *store_dir = NULL, *name = NULL, *out = NULL;
    const struct cli_option options[] = {
        {"out", 'o', CLI_TEXT, &out, "FILE", "the GGUF file to write (required; written whole or not at all)"},
        {"store", 0, CLI_TEXT, &store_dir, "DIR", "the store (default: store.path of the configuration)"},
        {0}};
    const struct cli_spec spec = {command, "NAME --out FILE", about, example, options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &name, &args);
    if (exit != CLI_RUN)
        return exit;
    if (out == NULL)
        return cli_wrong(command, "--out is missing: which file should be written?");
    struct memtier_store *store = NULL;
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    enum err_code code = open_store(store_dir, MEMTIER_READ, &store, &e);
    if (code == ERR_OK)
        code = write(store, name, out, &progress, &e);
    cli_bar_done(&bar);
    memtier_store_close(&store);
    if (code != ERR_OK)
        return cli_refuse(command, &e);
    printf("wrote %s\n", out);
    return CLI_DONE;
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

static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verbs[] = {
    {"add", verb_add, "import a GGUF model or LoRA adapter"},
    {"list", verb_list, "what the store has"},
    {"verify", verb_verify, "check every byte against its hash"},
    {"merge", verb_merge, "write base + adapter as one Q8_0 model"},
    {"export", verb_export, "give back the imported file"},
    {"rm", verb_rm, "remove an expert"},
    {"gc", verb_gc, "free what no expert uses"},
};

static void print_help(FILE *to)
{
    fprintf(to, "Experts are what clients can name as `model`: a base model, or a LoRA adapter over one. They\n"
                "live in a store on disk, from which the daemon brings them into memory as needed.\n\n"
                "Usage: switchyard experts VERB [options]\n\nVerbs:\n");
    for (size_t i = 0; i < BASE_COUNT(verbs); i++)
        fprintf(to, "  %-10s%s\n", verbs[i].name, verbs[i].help);
    fprintf(to, "\n'switchyard experts VERB --help' teaches a verb.\n");
}

int cmd_experts(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_WRONG;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return CLI_DONE;
    }
    const char *names[BASE_COUNT(verbs)];
    for (size_t i = 0; i < BASE_COUNT(verbs); i++) {
        names[i] = verbs[i].name;
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    }
    const char *near = cli_suggest(argv[1], names, BASE_COUNT(names));
    return cli_wrong("experts", "there is no verb '%s'%s%s%s", argv[1], near ? "; did you mean '" : "",
                     near ? near : "", near ? "'?" : "");
}
