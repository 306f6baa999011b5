/* Experts whose tokenizer is bytes plus three control tokens, and whose template is ChatML. */
#include "tests/unit/daemon/fake.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct tokenizer {
    bool add_bos;
};

struct chat_template {
    int unused;
};

struct expert {
    struct expert_info info;
    uint32_t idx;
    bool broken, bare;
    struct tokenizer *tokenizer;
};

struct experts {
    struct expert experts[4];
    size_t count;
    struct tokenizer plain, with_bos;
};

static const char *const control_text[] = {"<s>", "<|im_start|>", "<|im_end|>"};
static struct chat_template chatml;
static char every_byte[256]; /* filled at open */
static char first_alias[] = "first";
static char *aliases[] = {first_alias};

/* ---- tokenizer ---- */

static void push(struct token_list *l, int32_t id)
{
    if (l->count == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->ids = mem_grow(l->ids, l->cap, sizeof *l->ids);
    }
    l->ids[l->count++] = id;
}

static int control_at(const char *text, size_t len)
{
    for (int i = 0; i < 3; i++)
        if (strlen(control_text[i]) <= len &&
            memcmp(text, control_text[i], strlen(control_text[i])) == 0)
            return i;
    return -1;
}

enum err_code tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                               bool parse_special, struct token_list *ret, struct err *e)
{
    for (size_t i = 0; i < len;) {
        int control = parse_special ? control_at(text + i, len - i) : -1;
        push(ret, control >= 0 ? 256 + control : (unsigned char)text[i]);
        i += control >= 0 ? strlen(control_text[control]) : 1;
    }
    return ERR_OK;
}

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool special,
                                  size_t *ret_len)
{
    if (id >= 256 && id < FAKE_VOCAB) {
        *ret_len = special ? strlen(control_text[id - 256]) : 0;
        return control_text[id - 256];
    }
    if (id < 0 || id >= FAKE_VOCAB)
        return NULL;
    *ret_len = 1;
    return &every_byte[id];
}

int32_t tokenizer_vocab(const struct tokenizer *t)
{
    return FAKE_VOCAB;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return FAKE_BOS;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return FAKE_IM_END;
}

bool tokenizer_add_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return id == FAKE_IM_END;
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    return id >= 256 && id < FAKE_VOCAB;
}

void detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out)
{
    size_t len, whole;
    const char *bytes = tokenizer_token_bytes(t, id, false, &len);
    if (bytes == NULL || len == 0)
        return;
    d->held[d->held_len++] = bytes[0];
    whole = utf8_complete_prefix(d->held, d->held_len);
    if (d->held_len == sizeof d->held)
        whole = d->held_len;
    buf_append(out, d->held, whole);
    memmove(d->held, d->held + whole, d->held_len - whole);
    d->held_len -= whole;
}

void detok_end(struct detok *d, struct buf *out)
{
    if (d->held_len > 0)
        buf_puts(out, "\xef\xbf\xbd");
    d->held_len = 0;
}

/* ---- template ---- */

enum err_code template_parse(const char *source, size_t len, struct chat_template **ret,
                             struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED, "the fake has one template");
}

void template_close(struct chat_template **t)
{
    *t = NULL;
}

/* ChatML; a message "RAISE" makes it complain, tool arguments must be text, tools are listed first.
 */
enum err_code template_render(const struct chat_template *t, const struct template_input *in,
                              struct buf *ret_text, struct err *e)
{
    json_t *messages = json_loads(in->messages_json, JSON_ALLOW_NUL, NULL), *m;
    size_t i;
    enum err_code code = ERR_OK;
    if (in->tools_json != NULL)
        buf_printf(ret_text, "[tools %s]", in->tools_json);
    json_array_foreach(messages, i, m)
    {
        const json_t *content = json_object_get(m, "content");
        const json_t *call = json_array_get(json_object_get(m, "tool_calls"), 0);
        const json_t *arguments = json_object_get(json_object_get(call, "function"), "arguments");
        buf_printf(ret_text, "<|im_start|>%s\n", json_string_value(json_object_get(m, "role")));
        buf_append(ret_text, json_string_value(content), json_string_length(content));
        if (arguments != NULL && !json_is_string(arguments))
            code = err_set(e, ERR_INVALID, "arguments must be text");
        else if (arguments != NULL)
            buf_printf(ret_text, "[call %s]", json_string_value(arguments));
        if (strcmp(json_string_value(content), "RAISE") == 0)
            code = err_set(e, ERR_INVALID, "this template does not like the message");
        buf_puts(ret_text, "<|im_end|>\n");
    }
    if (in->add_generation_prompt)
        buf_puts(ret_text, "<|im_start|>assistant\n");
    json_decref(messages);
    return code;
}

/* ---- registry ---- */

struct experts *fake_experts_open(size_t count)
{
    static char names[4][16] = {"alpha", "org/beta", "broken", "bare"};
    static char empty[] = "", architecture[] = "bytes";
    struct experts *x = mem_alloc(sizeof *x);
    for (int i = 0; i < 256; i++)
        every_byte[i] = (char)i;
    x->count = BASE_MIN(count, (size_t)4);
    x->with_bos.add_bos = true;
    for (size_t i = 0; i < x->count; i++) {
        struct expert *ex = &x->experts[i];
        ex->info = (struct expert_info){.name = names[i],
                                        .base = empty,
                                        .description = empty,
                                        .system = empty,
                                        .architecture = architecture,
                                        .types = empty,
                                        .licence = empty,
                                        .scale = 1,
                                        .bytes = 1000,
                                        .parameters = 10,
                                        .context = 512,
                                        .created_s = 1700000000};
        ex->idx = (uint32_t)i;
        ex->tokenizer = i == 1 ? &x->with_bos : &x->plain;
        ex->broken = i == 2;
        ex->bare = i == 3;
    }
    if (x->count > 0) {
        x->experts[0].info.aliases = aliases;
        x->experts[0].info.aliases_count = 1;
    }
    return x;
}

void experts_close(struct experts **x)
{
    free(*x);
    *x = NULL;
}

size_t experts_count(const struct experts *x)
{
    return x->count;
}

struct expert *experts_at(struct experts *x, size_t expert_idx)
{
    return &x->experts[expert_idx];
}

struct expert *experts_find(struct experts *x, const char *name)
{
    for (size_t i = 0; i < x->count; i++) {
        const struct expert_info *info = &x->experts[i].info;
        if (strcmp(info->name, name) == 0)
            return &x->experts[i];
        for (size_t k = 0; k < info->aliases_count; k++)
            if (strcmp(info->aliases[k], name) == 0)
                return &x->experts[i];
    }
    return NULL;
}

const struct expert_info *expert_info(const struct expert *ex)
{
    return &ex->info;
}

uint32_t expert_index(const struct expert *ex)
{
    return ex->idx;
}

const struct tokenizer *expert_tokenizer(const struct expert *ex)
{
    return ex->tokenizer;
}

const struct chat_template *expert_template(const struct expert *ex)
{
    return ex->bare ? NULL : &chatml;
}

uint32_t expert_context(const struct expert *ex)
{
    return ex->info.context;
}

bool expert_ok(const struct expert *ex, struct err *e)
{
    if (ex->broken)
        err_set(e, ERR_UNSUPPORTED, "its weights are of a type that nobody knows");
    return !ex->broken;
}

void sampling_init(struct sampling *s)
{
    *s = (struct sampling){.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
}

/* ---- sentence encoders: there is none ------------------------------------------------------------ */

enum err_code encoder_open(const struct encoder_options *opt, struct encoder **ret, struct err *e)
{
    (void)ret;
    return err_set(e, ERR_NOT_FOUND, "cannot open the encoder '%s'", opt->path);
}

void encoder_close(struct encoder **n)
{
    *n = NULL;
}

const char *encoder_name(const struct encoder *n)
{
    (void)n;
    return "";
}

uint32_t encoder_width(const struct encoder *n)
{
    (void)n;
    return 0;
}

uint32_t encoder_tokens_max(const struct encoder *n)
{
    (void)n;
    return 0;
}

uint64_t encoder_id(const struct encoder *n)
{
    (void)n;
    return 0;
}

const struct tokenizer *encoder_tokenizer(const struct encoder *n)
{
    (void)n;
    return NULL;
}

enum err_code encoder_encode(struct encoder *n, const struct encoder_text *texts, size_t count,
                             uint32_t tokens_max, float *ret, uint64_t *ret_tokens, struct err *e)
{
    (void)n;
    (void)texts;
    (void)count;
    (void)tokens_max;
    (void)ret;
    (void)ret_tokens;
    return err_set(e, ERR_INTERNAL, "there is no encoder");
}
