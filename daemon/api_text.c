/* /tokenize, /detokenize and /apply-template: what a prompt comes to, without running it. Fields by
 * the names of llama.cpp's server (content, tokens, with_pieces) and of vLLM's (prompt, messages,
 * add_special_tokens); the model may be left out. */
#include "daemon/api.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"
#include "daemon/json_out.h"

/* ---- what all three begin with -------------------------------------------------------------- */

struct text_call {
    struct server *server;
    json_t *root;
    struct expert *expert;
    const char *key;
};

static enum err_code open_text(struct server *s, const char *key, const char *body, size_t len,
                               struct text_call *ret, struct err *e)
{
    const char *model = NULL;
    *ret = (struct text_call){.server = s, .expert = s->generalist, .key = key};
    enum err_code code = field_parse_body(body, len, &ret->root, e);
    if (code == ERR_OK)
        code = field_text(ret->root, "model", &model, e);
    if (code != ERR_OK)
        return code;
    if (model != NULL && strcmp(model, "auto") != 0)
        ret->expert = server_find_expert(s, model);
    if (ret->expert == NULL)
        return err_set_param(e, ERR_MODEL, "model", "there is no expert '%.80s'",
                             model != NULL ? model : "auto");
    code = api_check_key(s, ret->expert, ret->key, e);
    return code != ERR_OK || expert_ok(ret->expert, e) ? code : ERR_LOAD_FAILED;
}

static void close_text(struct text_call *t)
{
    json_decref(t->root);
}

/* A chat of the same body, with the model named; nothing of it is ever submitted. */
static enum err_code open_chat(const struct text_call *t, struct api_call **ret, struct err *e)
{
    json_object_set_new(t->root, "model", json_string(expert_info(t->expert)->name));
    char *body = json_dumps(t->root, JSON_COMPACT);
    if (body == NULL)
        return err_set(e, ERR_INVALID, "the body cannot be written as JSON again");
    enum err_code code = api_call_open(t->server, API_CHAT, body, strlen(body), ret, e);
    free(body);
    if (code != ERR_OK)
        return code;
    (*ret)->key = t->key;
    code = api_choose_expert(*ret, NULL, e);
    return code == ERR_OK ? api_tools_prepare(*ret, e) : code;
}

/* ---- /tokenize ------------------------------------------------------------------------------- */

static enum err_code chat_tokens(const struct text_call *t, struct token_list *ret, struct err *e)
{
    struct api_call *c = NULL;
    enum err_code code = open_chat(t, &c, e);
    if (code == ERR_OK)
        code = api_chat_tokens(c, ret, e);
    api_call_close(&c);
    return code;
}

static enum err_code text_tokens(const struct text_call *t, const char *key, struct token_list *ret,
                                 struct err *e)
{
    const struct tokenizer *tokenizer = expert_tokenizer(t->expert);
    const json_t *text = field_find(t->root, key);
    bool special = true, start = strcmp(key, "prompt") == 0;
    if (!json_is_string(text))
        return field_bad_type(e, key, "a string", text);
    enum err_code code = field_bool(t->root, "parse_special", &special, e);
    if (code == ERR_OK)
        code = field_bool(t->root, "add_special", &start, e);
    if (code == ERR_OK)
        code = field_bool(t->root, "add_special_tokens", &start, e);
    if (code != ERR_OK)
        return code;
    if (start && tokenizer_add_bos(tokenizer) && tokenizer_bos(tokenizer) >= 0)
        api_push_token(ret, tokenizer_bos(tokenizer));
    return tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), special,
                            ret, e);
}

static void put_bytes(const char *bytes, size_t len, struct buf *out)
{
    buf_puts(out, "[");
    for (size_t i = 0; i < len; i++)
        buf_printf(out, i > 0 ? ",%u" : "%u", (unsigned)(unsigned char)bytes[i]);
    buf_puts(out, "]");
}

/* {"id":7,"piece":"text"}; a piece that is no text is an array of its bytes. */
static void put_piece(const struct tokenizer *t, int32_t id, struct buf *out)
{
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(t, id, true, &len);
    buf_printf(out, "{\"id\":%d,\"piece\":", id);
    if (bytes == NULL || utf8_valid(bytes, len))
        json_put_text(out, bytes != NULL ? bytes : "", len);
    else
        put_bytes(bytes, len, out);
    buf_puts(out, "}");
}

static void put_tokens(const struct text_call *t, const struct token_list *ids, bool pieces,
                       struct buf *out)
{
    buf_puts(out, "{\"tokens\":[");
    for (size_t i = 0; i < ids->count; i++) {
        buf_puts(out, i > 0 ? "," : "");
        if (pieces)
            put_piece(expert_tokenizer(t->expert), ids->ids[i], out);
        else
            buf_printf(out, "%d", ids->ids[i]);
    }
    buf_printf(out, "],\"count\":%zu,\"max_model_len\":%u,\"model\":", ids->count,
               server_expert_of(t->server, t->expert)->context);
    json_put_str(out, expert_info(t->expert)->name);
    buf_puts(out, "}");
}

static enum err_code tokenize(const struct text_call *t, struct buf *out, struct err *e)
{
    struct token_list ids = {0};
    bool pieces = false;
    enum err_code code = field_bool(t->root, "with_pieces", &pieces, e);
    if (code != ERR_OK)
        return code;
    if (field_find(t->root, "messages") != NULL)
        code = chat_tokens(t, &ids, e);
    else if (field_find(t->root, "prompt") != NULL)
        code = text_tokens(t, "prompt", &ids, e);
    else
        code = text_tokens(t, "content", &ids, e);
    if (code == ERR_OK)
        put_tokens(t, &ids, pieces, out);
    free(ids.ids);
    return code;
}

/* ---- /detokenize ------------------------------------------------------------------------------
 */

static enum err_code token_bytes(const struct text_call *t, const json_t *v, struct buf *text,
                                 struct err *e)
{
    const struct tokenizer *tokenizer = expert_tokenizer(t->expert);
    size_t len = 0;
    if (!json_is_integer(v))
        return field_bad_type(e, "tokens", "an array of token ids", v);
    int64_t id = json_integer_value(v);
    if (id < 0 || id >= tokenizer_vocab(tokenizer))
        return err_set_param(e, ERR_INVALID, "tokens",
                             "'tokens' has the token %lld, but the expert's vocabulary ends at %d",
                             (long long)id, tokenizer_vocab(tokenizer) - 1);
    const char *bytes = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &len);
    if (bytes != NULL)
        buf_append(text, bytes, len);
    return ERR_OK;
}

static enum err_code detokenize(const struct text_call *t, struct buf *out, struct err *e)
{
    const json_t *tokens = field_find(t->root, "tokens");
    struct buf text = {0};
    enum err_code code = ERR_OK;
    if (!json_is_array(tokens))
        return field_bad_type(e, "tokens", "an array of token ids", tokens);
    for (size_t i = 0; i < json_array_size(tokens) && code == ERR_OK; i++)
        code = token_bytes(t, json_array_get(tokens, i), &text, e);
    if (code == ERR_OK) {
        const char *data = text.data != NULL ? text.data : "";
        buf_puts(out, "{\"content\":");
        json_put_text(out, data, text.len);
        buf_puts(out, ",\"prompt\":");
        json_put_text(out, data, text.len);
        buf_puts(out, "}");
    }
    buf_done(&text);
    return code;
}

/* ---- /apply-template ----------------------------------------------------------------------------
 */

static enum err_code apply_template(const struct text_call *t, struct buf *out, struct err *e)
{
    struct api_call *c = NULL;
    struct buf text = {0};
    enum err_code code = open_chat(t, &c, e);
    if (code == ERR_OK)
        code = api_chat_text(c, &text, e);
    if (code == ERR_OK) {
        buf_puts(out, "{\"prompt\":");
        json_put_text(out, text.data != NULL ? text.data : "", text.len);
        buf_puts(out, "}");
    }
    buf_done(&text);
    api_call_close(&c);
    return code;
}

enum err_code api_answer_text(struct server *s, enum api_text what, const char *key,
                              const char *body, size_t len, struct buf *out, struct err *e)
{
    struct text_call t;
    enum err_code code = open_text(s, key, body, len, &t, e);
    if (code == ERR_OK && what == API_TEXT_TOKENIZE)
        code = tokenize(&t, out, e);
    else if (code == ERR_OK && what == API_TEXT_DETOKENIZE)
        code = detokenize(&t, out, e);
    else if (code == ERR_OK)
        code = apply_template(&t, out, e);
    close_text(&t);
    return code;
}
