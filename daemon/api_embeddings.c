/* Embeddings: strings, lists of strings, token arrays; numbers or base64 of little-endian f32. */
#include "daemon/api_embeddings.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/api_field.h"
#include "daemon/json_out.h"

#define BATCH 16 /* inputs of one hold of the encoder: routing gets its turn between two */

static enum err_code no_encoder(struct server *s, const char *model, struct err *e)
{
    if (server_find_expert(s, model) != NULL || strcmp(model, "auto") == 0)
        return err_set_param(e, ERR_UNSUPPORTED, "model",
                             "expert '%.80s' generates text and makes no embeddings%s", model,
                             routing_encoder(s) ? "" : "; set router.encoder to serve an encoder");
    return err_set_param(e, ERR_MODEL, "model", "there is no model '%.80s' that makes embeddings%s",
                         model,
                         routing_encoder(s) ? "; GET /v1/models lists it"
                                            : ": set router.encoder to serve an encoder");
}

static enum err_code check_model(struct server *s, const json_t *root, struct err *e)
{
    const char *model = NULL;
    const struct route_encoder *n = routing_encoder(s);
    enum err_code code = field_text(root, "model", &model, e);
    if (code != ERR_OK)
        return code;
    if (model == NULL)
        return err_set_param(e, ERR_INVALID, "model", "'model' is missing");
    if (n == NULL || strcmp(model, encoder_name(route_encoder_model(n))) != 0)
        return no_encoder(s, model, e);
    return ERR_OK;
}

static enum err_code check_options(struct api_embeddings *m, struct err *e)
{
    const char *format = "float";
    int64_t width = encoder_width(route_encoder_model(routing_encoder(m->server))),
            dimensions = width;
    enum err_code code = field_text(m->root, "encoding_format", &format, e);
    if (code == ERR_OK)
        code = field_int(m->root, "dimensions", 1, INT32_MAX, &dimensions, e);
    if (code != ERR_OK)
        return code;
    m->base64 = strcmp(format, "base64") == 0;
    if (!m->base64 && strcmp(format, "float") != 0)
        return err_set_param(e, ERR_INVALID, "encoding_format",
                             "'encoding_format' is 'float' or 'base64', not '%.40s'", format);
    if (dimensions != width)
        return err_set_param(e, ERR_UNSUPPORTED, "dimensions",
                             "this model's vectors have %lld dimensions and mean nothing when cut",
                             (long long)width);
    return ERR_OK;
}

static enum err_code add_text(struct api_embeddings *m, const json_t *v, struct err *e)
{
    if (json_string_length(v) == 0)
        return err_set_param(e, ERR_INVALID, "input", "'input' is empty");
    m->texts[m->count++] =
        (struct encoder_text){.text = json_string_value(v), .len = json_string_length(v)};
    return ERR_OK;
}

static enum err_code add_ids(struct api_embeddings *m, const json_t *list, int32_t **at,
                             struct err *e)
{
    const int32_t *from = *at;
    int32_t vocab =
        tokenizer_vocab(encoder_tokenizer(route_encoder_model(routing_encoder(m->server))));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v))
            return field_bad_type(e, "input", "strings or lists of token ids", v);
        if (json_integer_value(v) < 0 || json_integer_value(v) >= vocab)
            return err_set_param(e, ERR_INVALID, "input",
                                 "token %lld is not in the vocabulary of %d",
                                 (long long)json_integer_value(v), vocab);
        *(*at)++ = (int32_t)json_integer_value(v);
    }
    if (*at == from)
        return err_set_param(e, ERR_INVALID, "input", "'input' is empty");
    m->texts[m->count++] = (struct encoder_text){.ids = from, .len = (size_t)(*at - from)};
    return ERR_OK;
}

/* Room for all token ids of the input. */
static size_t ids_in(const json_t *input)
{
    size_t n = json_array_size(input);
    for (size_t i = 0; i < json_array_size(input); i++)
        n += json_array_size(json_array_get(input, i));
    return n;
}

static enum err_code read_input(struct api_embeddings *m, struct err *e)
{
    const json_t *input = field_find(m->root, "input");
    size_t count = json_is_array(input) ? json_array_size(input) : 1;
    if (input == NULL)
        return err_set_param(e, ERR_INVALID, "input", "'input' is missing");
    if (count == 0)
        return err_set_param(e, ERR_INVALID, "input", "'input' is empty");
    bool tokens = json_is_array(input) && json_is_integer(json_array_get(input, 0));
    if (!tokens && count > API_EMBEDDINGS_MAX)
        return err_set_param(e, ERR_INVALID, "input", "'input' has %zu texts, at most %d are taken",
                             count, API_EMBEDDINGS_MAX);
    m->texts = mem_array(tokens ? 1 : count, sizeof *m->texts);
    m->ids = mem_array(ids_in(input) + 1, sizeof *m->ids);
    int32_t *at = m->ids;
    if (tokens)
        return add_ids(m, input, &at, e);
    if (json_is_string(input))
        return add_text(m, input, e);
    if (!json_is_array(input))
        return field_bad_type(e, "input", "a string, a list of strings or token ids", input);
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < count && code == ERR_OK; i++) {
        const json_t *v = json_array_get(input, i);
        if (json_is_string(v))
            code = add_text(m, v, e);
        else if (json_is_array(v))
            code = add_ids(m, v, &at, e);
        else
            code = field_bad_type(e, "input", "a string, a list of strings or token ids", v);
    }
    return code;
}

enum err_code api_embeddings_open(struct server *s, const char *body, size_t len,
                                  struct api_embeddings **ret, struct err *e)
{
    struct api_embeddings *m = mem_alloc(sizeof *m);
    m->server = s;
    enum err_code code = field_parse_body(body, len, &m->root, e);
    if (code == ERR_OK)
        code = routing_encoder(s) != NULL && field_find(m->root, "model") != NULL
                   ? check_model(s, m->root, e)
                   : ERR_OK;
    if (code == ERR_OK && routing_encoder(s) == NULL) {
        const json_t *input = field_find(m->root, "input");
        bool empty = (json_is_string(input) && json_string_length(input) == 0) ||
                     (json_is_array(input) && json_array_size(input) == 0);
        if (field_find(m->root, "model") == NULL)
            code = err_set_param(e, ERR_INVALID, "model", "'model' is missing");
        else if (input == NULL || empty)
            code = err_set_param(e, ERR_INVALID, "input", "'input' is %s",
                                 empty ? "empty" : "missing");
        else
            code = check_model(s, m->root, e);
    } else if (code == ERR_OK) {
        code = check_model(s, m->root, e);
        if (code == ERR_OK)
            code = check_options(m, e);
        if (code == ERR_OK)
            code = read_input(m, e);
    }
    if (code != ERR_OK) {
        api_embeddings_close(&m);
        return code;
    }
    *ret = m;
    return ERR_OK;
}

enum err_code api_embeddings_run(struct api_embeddings *m, struct err *e)
{
    struct route_encoder *n = routing_encoder(m->server);
    size_t width = encoder_width(route_encoder_model(n));
    enum err_code code = ERR_OK;
    m->vectors = mem_array(m->count, width * sizeof(float));
    for (size_t at = 0; at < m->count && code == ERR_OK; at += BATCH) {
        uint64_t tokens = 0;
        code = route_encoder_encode(n, m->texts + at, BASE_MIN(m->count - at, (size_t)BATCH),
                                    m->vectors + at * width, &tokens, e);
        m->tokens += tokens;
    }
    return code;
}

static void put_base64(const void *data, size_t len, struct buf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i += 3) {
        size_t n = BASE_MIN(len - i, (size_t)3);
        uint32_t v = (uint32_t)p[i] << 16 | (n > 1 ? (uint32_t)p[i + 1] << 8 : 0) |
                     (n > 2 ? (uint32_t)p[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63], n > 1 ? digits[v >> 6 & 63] : '=',
                        n > 2 ? digits[v & 63] : '='};
        buf_append(out, four, 4);
    }
}

static void put_vector(const struct api_embeddings *m, const float *v, size_t width,
                       struct buf *out)
{
    if (m->base64) {
        buf_puts(out, "\"");
        put_base64(v, width * sizeof *v, out);
        buf_puts(out, "\"");
        return;
    }
    for (size_t i = 0; i < width; i++) {
        buf_puts(out, i == 0 ? "[" : ",");
        json_put_real(out, (double)v[i], 8);
    }
    buf_puts(out, "]");
}

void api_embeddings_put(const struct api_embeddings *m, struct buf *out)
{
    const struct encoder *n = route_encoder_model(routing_encoder(m->server));
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < m->count; i++) {
        buf_printf(out, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i ? "," : "",
                   i);
        put_vector(m, m->vectors + i * encoder_width(n), encoder_width(n), out);
        buf_puts(out, "}");
    }
    buf_puts(out, "],\"model\":");
    json_put_str(out, encoder_name(n));
    buf_printf(out, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}",
               (unsigned long long)m->tokens, (unsigned long long)m->tokens);
}

void api_embeddings_close(struct api_embeddings **m)
{
    if (*m == NULL)
        return;
    json_decref((*m)->root);
    free((*m)->texts);
    free((*m)->ids);
    free((*m)->vectors);
    free(*m);
    *m = NULL;
}
