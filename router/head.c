/* The head file: written in one piece, read with every size checked before it is used. A head is a
 * few megabytes that decide where all traffic goes, so a torn or foreign file is refused with its
 * cause. */
#include "router/head.h"
#include "router/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX 1e6f /* of a bias or scale; with it no sum of logits overflows */

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "head files are little endian and read without conversion"
#endif
_Static_assert(sizeof(struct head_header) == 104, "the header has no padding");

/* Everything after the checksum field is under the checksum. */
#define HEAD_SUMMED_FROM (offsetof(struct head_header, checksum) + sizeof(uint64_t))

bool head_bytes(const struct text_geometry *g, size_t labels, size_t features, size_t *ret)
{
    size_t weights, per_label, total;
    if (!size_mul(labels, features, &weights) ||
        !size_mul(labels, ROUTER_NAME_MAX + 2 * sizeof(float), &per_label))
        return false;
    total = sizeof(struct head_header) + text_space(g) / 8;
    return size_add(total, per_label, &total) && size_add(total, weights, ret);
}

bool head_encoder_bytes(size_t labels, size_t width, size_t samples, size_t *ret)
{
    size_t matrix, rows, vectors, total;
    *ret = 0;
    if (width == 0)
        return samples == 0;
    return size_mul(labels, (width + 2) * sizeof(float), &matrix) &&
           size_mul(samples, sizeof(uint32_t), &rows) && size_mul(samples, width, &vectors) &&
           size_add(matrix, rows, &total) && size_add(total, vectors, ret);
}

static bool file_bytes(const struct head_header *h, size_t *ret)
{
    size_t ngram, encoder;
    return head_bytes(&h->geometry, h->labels, h->features, &ngram) &&
           head_encoder_bytes(h->labels, h->width, h->samples, &encoder) &&
           size_add(ngram, encoder, ret);
}

void head_write(const struct head_parts *p, struct buf *ret)
{
    struct head_header header = p->header;
    size_t labels = header.labels, bytes = 0;
    bool fits = file_bytes(&header, &bytes);
    memcpy(header.magic, HEAD_MAGIC, sizeof(header.magic));
    header.version = HEAD_VERSION;
    header.header_bytes = sizeof(header);
    header.file_bytes = fits ? bytes : 0;
    header.checksum = 0;

    buf_clear(ret);
    buf_append(ret, &header, sizeof(header));
    buf_append(ret, p->labels, labels * sizeof(*p->labels));
    buf_append(ret, p->bias, labels * sizeof(float));
    buf_append(ret, p->scale, labels * sizeof(float));
    buf_append(ret, p->present, text_space(&header.geometry) / 8);
    buf_append(ret, p->weights, (size_t)header.features * labels);
    if (header.width > 0) {
        buf_append(ret, p->matrix, labels * header.width * sizeof(float));
        buf_append(ret, p->offset, labels * sizeof(float));
        buf_append(ret, p->entitled, labels * sizeof(float));
        buf_append(ret, p->sample_of, header.samples * sizeof(uint32_t));
        buf_append(ret, p->samples, (size_t)header.samples * header.width);
    }
    header.checksum =
        hash64_of(ret->data + HEAD_SUMMED_FROM, ret->len - HEAD_SUMMED_FROM, HEAD_SEED);
    memcpy(ret->data, &header, sizeof(header));
}

/* ---- reading
 * ------------------------------------------------------------------------------------- */

static enum err_code refuse(struct err *e, const char *cause)
{
    return err_set(e, ERR_CORRUPT, "router head: %s; train it again or copy the file again", cause);
}

static enum err_code check_envelope(const struct head_header *h, const void *data, size_t len,
                                    struct err *e)
{
    if (memcmp(h->magic, HEAD_MAGIC, sizeof(h->magic)) != 0)
        return err_set(e, ERR_CORRUPT,
                       "router head: not a head file (it does not start with \"%s\")", HEAD_MAGIC);
    if (h->version != HEAD_VERSION)
        return err_set(e, ERR_CORRUPT,
                       "router head: version %u, but this program reads version %d; train it again",
                       h->version, HEAD_VERSION);
    if (h->header_bytes != sizeof(*h))
        return refuse(e, "its header has the wrong size");
    if (h->file_bytes != len)
        return err_set(
            e, ERR_CORRUPT,
            "router head: %zu bytes, but the header says %llu: the file was cut or joined; "
            "train it again or copy the file again",
            len, (unsigned long long)h->file_bytes);
    uint64_t sum =
        hash64_of((const char *)data + HEAD_SUMMED_FROM, len - HEAD_SUMMED_FROM, HEAD_SEED);
    return sum == h->checksum ? ERR_OK : refuse(e, "the checksum does not match its bytes");
}

/* What a file with a right checksum may still have wrong: written by a broken or hostile program.
 */
static enum err_code check_header(const struct head_header *h, size_t len, struct err *e)
{
    size_t bytes;
    if (!text_geometry_valid(&h->geometry))
        return refuse(e, "its n-gram geometry is out of range");
    if (h->labels < 1 || h->labels > ROUTER_LABELS_MAX)
        return refuse(e, "its number of labels is out of range");
    if (h->general_idx < -1 || h->general_idx >= (int32_t)h->labels)
        return refuse(e, "its generalist is not one of its labels");
    if (h->width > HEAD_WIDTH_MAX || h->samples > HEAD_SAMPLES_MAX)
        return refuse(e, "its encoder stage is out of range");
    if (!file_bytes(h, &bytes) || bytes != len)
        return refuse(e, "its parts do not add up to its size");
    if (!(h->temperature >= 1e-3f && h->temperature <= 1e3f))
        return refuse(e, "its temperature is not between 0.001 and 1000");
    if (h->width > 0 &&
        !(h->encoder_temperature >= 1e-3f && h->encoder_temperature <= 1e3f && h->mix >= 0.0f &&
          h->mix <= 16.0f && h->sample_scale > 0.0f && h->sample_scale <= 1.0f))
        return refuse(e, "a number of its encoder stage is out of range");
    if (!(h->threshold >= 0.0f && h->threshold <= 1.0f))
        return refuse(e, "its threshold is not between 0 and 1");
    if (!(h->stay >= 0.0f && h->stay < 1.0f))
        return refuse(e, "its chance to stay is not between 0 and 1");
    return ERR_OK;
}

static const void *take(const char **at, size_t bytes)
{
    const void *part = *at;
    *at += bytes;
    return part;
}

static float *take_floats(const char **at, size_t count);

static void copy_encoder(struct router_head *h, const char *at)
{
    size_t labels = h->header.labels, width = h->header.width, samples = h->header.samples;
    if (width == 0)
        return;
    h->matrix = take_floats(&at, labels * width);
    h->offset = take_floats(&at, labels);
    h->entitled = take_floats(&at, labels);
    h->sample_of = mem_array(samples + 1, sizeof(*h->sample_of));
    memcpy(h->sample_of, at, samples * sizeof(*h->sample_of));
    h->samples = mem_array(samples + 1, width);
    memcpy(h->samples, at + samples * sizeof(*h->sample_of), samples * width);
}

static void copy_parts(struct router_head *h, const char *at)
{
    size_t labels = h->header.labels, space = text_space(&h->header.geometry);
    h->labels = mem_array(labels, sizeof(*h->labels));
    h->bias = mem_array(labels, sizeof(float));
    h->scale = mem_array(labels, sizeof(float));
    h->blocks = mem_array(space / 64, sizeof(*h->blocks));
    /* + 1: no allocation of zero bytes for a head without features */
    h->weights = mem_array((size_t)h->header.features * labels + 1, 1);
    memcpy(h->labels, take(&at, labels * sizeof(*h->labels)), labels * sizeof(*h->labels));
    memcpy(h->bias, take(&at, labels * sizeof(float)), labels * sizeof(float));
    memcpy(h->scale, take(&at, labels * sizeof(float)), labels * sizeof(float));
    const char *present = take(&at, space / 8);
    uint64_t rows = 0;
    for (size_t i = 0; i < space / 64; i++) {
        memcpy(&h->blocks[i].present, present + i * 8, 8);
        h->blocks[i].rows_before = rows;
        rows += (uint64_t)__builtin_popcountll(h->blocks[i].present);
    }
    memcpy(h->weights, at, (size_t)h->header.features * labels);
    copy_encoder(h, at + (size_t)h->header.features * labels);
}

static float *take_floats(const char **at, size_t count)
{
    float *v = mem_array(count, sizeof(*v));
    memcpy(v, *at, count * sizeof(*v));
    *at += count * sizeof(*v);
    return v;
}

static enum err_code check_labels(const struct router_head *h, struct err *e)
{
    for (size_t i = 0; i < h->header.labels; i++) {
        size_t len = strnlen(h->labels[i], ROUTER_NAME_MAX);
        if (len == 0 || len == ROUTER_NAME_MAX || !utf8_valid(h->labels[i], len))
            return refuse(e, "a label is empty, too long or not UTF-8");
        for (size_t j = 0; j < i; j++)
            if (strcmp(h->labels[i], h->labels[j]) == 0)
                return refuse(e, "two of its labels are equal");
    }
    return ERR_OK;
}

static enum err_code check_numbers(const struct router_head *h, struct err *e)
{
    for (size_t i = 0; i < h->header.labels; i++)
        if (!(fabsf(h->bias[i]) <= NUMBER_MAX) || !(fabsf(h->scale[i]) <= NUMBER_MAX))
            return refuse(e, "a bias or scale is not a sane number");
    for (size_t i = 0; h->matrix && i < (size_t)h->header.labels * h->header.width; i++)
        if (!(fabsf(h->matrix[i]) <= NUMBER_MAX))
            return refuse(e, "a weight of its encoder stage is not a sane number");
    for (size_t i = 0; h->matrix && i < h->header.labels; i++)
        if (!(fabsf(h->offset[i]) <= NUMBER_MAX) || !(h->entitled[i] >= 0.0f))
            return refuse(e, "an offset or threshold of its encoder stage is not a sane number");
    for (size_t i = 0; i < h->header.samples; i++)
        if (h->sample_of[i] >= h->header.labels)
            return refuse(e, "a sample belongs to no label");
    size_t last = text_space(&h->header.geometry) / 64 - 1;
    uint64_t rows =
        h->blocks[last].rows_before + (uint64_t)__builtin_popcountll(h->blocks[last].present);
    return rows == h->header.features ? ERR_OK
                                      : refuse(e, "its feature map does not match its weights");
}

enum err_code router_head_parse(const void *data, size_t len, struct router_head **ret,
                                struct err *e)
{
    struct head_header header;
    if (len < sizeof(header))
        return refuse(e, "it is shorter than a head's header");
    memcpy(&header, data, sizeof(header));
    enum err_code code = check_envelope(&header, data, len, e);
    if (code == ERR_OK)
        code = check_header(&header, len, e);
    if (code != ERR_OK)
        return code;

    struct router_head *h = mem_alloc(sizeof(*h));
    h->header = header;
    copy_parts(h, (const char *)data + sizeof(header));
    code = check_labels(h, e);
    if (code == ERR_OK)
        code = check_numbers(h, e);
    if (code != ERR_OK) {
        router_head_close(&h);
        return code;
    }
    *ret = h;
    return ERR_OK;
}

enum err_code router_head_open(const char *path, struct router_head **ret, struct err *e)
{
    struct buf file = {0};
    enum err_code code = file_read(path, HEAD_BYTES_MAX, &file, e);
    if (code == ERR_OK)
        code = router_head_parse(file.data, file.len, ret, e);
    if (code != ERR_OK)
        err_wrap(e, "%s", path);
    buf_done(&file);
    return code;
}

void router_head_close(struct router_head **h)
{
    if (!*h)
        return;
    free((*h)->labels);
    free((*h)->bias);
    free((*h)->scale);
    free((*h)->blocks);
    free((*h)->weights);
    free((*h)->matrix);
    free((*h)->offset);
    free((*h)->entitled);
    free((*h)->sample_of);
    free((*h)->samples);
    free(*h);
    *h = NULL;
}

size_t router_head_labels(const struct router_head *h)
{
    return h->header.labels;
}

const char *router_head_label(const struct router_head *h, size_t label_idx)
{
    return label_idx < h->header.labels ? h->labels[label_idx] : "";
}

/* ---- scoring
 * -------------------------------------------------------------------------------------- */

static void add_row(float *restrict sum, const int8_t *restrict row, size_t labels, float value)
{
    for (size_t i = 0; i < labels; i++)
        sum[i] += value * (float)row[i];
}

void head_logits(const struct router_head *h, const struct text_feature *f, size_t count,
                 float *ret_logits)
{
    size_t labels = h->header.labels;
    for (size_t i = 0; i < labels; i++)
        ret_logits[i] = 0.0f;
    for (size_t i = 0; i < count; i++) {
        const int8_t *row = head_row(h, f[i].idx);
        if (row)
            add_row(ret_logits, row, labels, f[i].value);
    }
    for (size_t i = 0; i < labels; i++)
        ret_logits[i] = h->bias[i] + h->scale[i] * ret_logits[i];
}

/* A stage that is sure says little more at 1e-6 than at 1e-4, and must stay overrulable. */
#define PROBABILITY_FLOOR 1e-4f

void head_encoder_logits(const struct router_head *h, const float *vector, const float *ngram,
                         float *ret)
{
    size_t labels = h->header.labels, width = h->header.width;
    for (size_t i = 0; i < labels; i++) {
        const float *row = h->matrix + i * width;
        float lane[16] = {0}, sum = 0.0f;
        for (size_t k = 0; k < width; k++)
            lane[k % 16] += row[k] * vector[k];
        for (size_t k = 0; k < 16; k++)
            sum += lane[k];
        ret[i] = h->offset[i] + sum + h->header.mix * logf(ngram[i] + PROBABILITY_FLOOR);
    }
}

void head_encoder_posterior(const struct router_head *h, const float *vector, const float *ngram,
                            float *ret)
{
    head_encoder_logits(h, vector, ngram, ret);
    calibrate_softmax(ret, h->header.labels, (double)h->header.encoder_temperature, ret);
}

size_t router_head_width(const struct router_head *h)
{
    return h->header.width;
}

uint64_t router_head_encoder_id(const struct router_head *h)
{
    return h->header.encoder_id;
}
