/* switchyard tokenize and template: the text side of a model, line by line, for people who debug prompts. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "experts/experts.h"

/* Reads stdin line by line; `line` makes the answer to one JSON object. */
static int for_each_line(json_t *(*line)(void *ctx, json_t *in), void *ctx)
{
    char *text = NULL;
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&text, &cap, stdin)) >= 0) {
        json_error_t je;
        if (len == 0 || (len == 1 && text[0] == '\n'))
            continue;
        json_t *in = json_loadb(text, (size_t)len, JSON_ALLOW_NUL, &je);
        json_t *out = in ? line(ctx, in) : json_pack("{s:s}", "error", je.text);
        char *dump = json_dumps(out, JSON_COMPACT | JSON_ENSURE_ASCII);
        puts(dump);
        free(dump);
        json_decref(out);
        json_decref(in);
    }
    free(text);
    fflush(stdout);
    return CLI_DONE;
}

static json_t *error_json(const struct err *e)
{
    return json_pack("{s:s}", "error", e->msg);
}

/* ---- tokenize ------------------------------------------------------------------------------------------ */

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : (c == '/' ? 63 : -1);
}

static bool base64_decode(const char *s, struct buf *out)
{
    uint32_t bits = 0, have = 0;
    for (; *s && *s != '='; s++) {
        int v = base64_value(*s);
        if (v < 0)
            return false;
        bits = bits << 6 | (uint32_t)v;
        have += 6;
        if (have >= 8) {
            char byte = (char)(bits >> (have - 8));
            buf_append(out, &byte, 1);
            have -= 8;
        }
    }
    return true;
}

static json_t *tokenize_line(void *ctx, json_t *in)
{
    const struct tokenizer *t = ctx;
    json_t *text = json_object_get(in, "text"), *b64 = json_object_get(in, "bytes_b64");
    struct buf bytes = {0};
    struct token_list ids = {0};
    struct err e = {0};
    json_t *out;
    if (json_is_string(text))
        buf_append(&bytes, json_string_value(text), json_string_length(text));
    else if (!json_is_string(b64) || !base64_decode(json_string_value(b64), &bytes))
        return json_pack("{s:s}", "error", "a line needs \"text\" or valid \"bytes_b64\"");
    bool special = json_is_true(json_object_get(in, "parse_special"));
    if (tokenizer_encode(t, bytes.data ? bytes.data : "", bytes.len, special, &ids, &e) == ERR_OK) {
        json_t *list = json_array();
        for (size_t i = 0; i < ids.count; i++)
            json_array_append_new(list, json_integer(ids.ids[i]));
        out = json_pack("{s:o}", "ids", list);
    } else {
        out = error_json(&e);
    }
    free(ids.ids);
    buf_done(&bytes);
    return out;
}

int cmd_tokenize(int argc, char **argv)
{
    const char *path = NULL;
    bool jsonl = false;
    const struct cli_option options[] = {
        {"jsonl", 0, CLI_FLAG, &jsonl, NULL, "read {\"text\"|\"bytes_b64\", \"parse_special\"} lines, print {\"ids\"}"},
        {0}};
    const struct cli_spec spec = {
        "tokenize", "MODEL.gguf --jsonl",
        "Shows how a model's tokenizer cuts text. Control tokens in the text stay text unless\n"
        "\"parse_special\" is true; no BOS or EOS is added.",
        "  echo '{\"text\": \"Hello world\"}' | switchyard tokenize model.gguf --jsonl\n", options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &path, &args);
    if (exit != CLI_RUN)
        return exit;
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err e = {0};
    enum err_code code = gguf_open(path, &g, &e);
    if (code == ERR_OK)
        code = tokenizer_open(g, &t, &e);
    gguf_close(&g);
    if (code != ERR_OK)
        return cli_refuse("tokenize", &e);
    exit = for_each_line(tokenize_line, t);
    tokenizer_close(&t);
    return exit;
}

/* ---- template ------------------------------------------------------------------------------------------- */

static char *dump_or_null(json_t *v)
{
    return v && !json_is_null(v) ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
}

/* Every key that is not one of ours is a further variable of the template. */
static json_t *extra_of(json_t *in)
{
    json_t *extra = json_object_get(in, "extra");
    return json_is_object(extra) ? json_incref(extra) : json_object();
}

static json_t *template_line(void *ctx, json_t *in)
{
    const struct chat_template *t = ctx;
    char *messages = dump_or_null(json_object_get(in, "messages"));
    char *tools = dump_or_null(json_object_get(in, "tools"));
    json_t *extra_json = extra_of(in);
    char *extra = json_object_size(extra_json) ? json_dumps(extra_json, JSON_COMPACT) : NULL;
    const char *bos = json_string_value(json_object_get(in, "bos_token"));
    const char *eos = json_string_value(json_object_get(in, "eos_token"));
    json_t *now = json_object_get(in, "now");
    struct template_input input = {
        .messages_json = messages ? messages : "[]", .tools_json = tools, .extra_json = extra,
        .add_generation_prompt = json_is_true(json_object_get(in, "add_generation_prompt")),
        .bos_token = bos ? bos : "", .eos_token = eos ? eos : "",
        .now = json_is_integer(now) ? json_integer_value(now) : (int64_t)(clock_wall_ms() / 1000)};
    struct buf text = {0};
    struct err e = {0};
    json_t *out;
    if (template_render(t, &input, &text, &e) == ERR_OK) {
        out = json_pack("{s:s%}", "text", text.data ? text.data : "", text.len);
        if (out == NULL)
            out = json_pack("{s:s}", "error", "the output is not UTF-8");
    } else {
        out = error_json(&e);
    }
    buf_done(&text);
    json_decref(extra_json);
    free(messages);
    free(tools);
    free(extra);
    return out;
}

static enum err_code read_template(const char *path, struct chat_template **ret, struct err *e)
{
    size_t len = strlen(path);
    struct gguf *g = NULL;
    struct gguf_str source;
    struct buf text = {0};
    enum err_code code;
    if (len < 5 || strcmp(path + len - 5, ".gguf") != 0) {
        code = file_read(path, 4 * BASE_MIB, &text, e);
        if (code == ERR_OK)
            code = template_parse(text.data ? text.data : "", text.len, ret, e);
        buf_done(&text);
        return code;
    }
    code = gguf_open(path, &g, e);
    if (code == ERR_OK)
        code = gguf_get_str(g, "tokenizer.chat_template", &source, e);
    if (code == ERR_OK)
        code = template_parse(source.data, source.len, ret, e);
    gguf_close(&g);
    return code;
}

int cmd_template(int argc, char **argv)
{
    const char *path = NULL;
    bool jsonl = false, features = false;
    const struct cli_option options[] = {
        {"jsonl", 0, CLI_FLAG, &jsonl, NULL,
         "read {\"messages\",\"tools\",\"add_generation_prompt\",\"bos_token\",\"eos_token\"} lines"},
        {"features", 0, CLI_FLAG, &features, NULL, "list what the template language supports"},
        {0}};
    const struct cli_spec spec = {
        "template", "FILE.jinja|MODEL.gguf --jsonl",
        "Renders chat templates: each line is a conversation, each answer {\"text\"} or {\"error\"}. Syntax\n"
        "outside the supported subset is named with its line, never skipped.",
        "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": true}' |\n"
        "      switchyard template model.gguf --jsonl\n", options, 0, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &path, &args);
    if (exit != CLI_RUN)
        return exit;
    if (features) {
        for (const char *const *f = template_features(); *f; f++)
            puts(*f);
        return CLI_DONE;
    }
    if (args == 0)
        return cli_wrong("template", "which template? Give a .jinja or .gguf file, or --features");
    struct chat_template *t = NULL;
    struct err e = {0};
    if (read_template(path, &t, &e) != ERR_OK)
        return cli_refuse("template", &e);
    exit = for_each_line(template_line, t);
    template_close(&t);
    return exit;
}
