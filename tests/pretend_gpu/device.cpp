// A CUDA device whose memory is that of the processor, for builds of torch without CUDA.
//
// Tensors on it say that they are CUDA's. Every operation runs on the processor, unless its tensors are on several
// devices, which a GPU refuses, or the host would wait for a GPU while that is forbidden. Results of convolutions have
// the layout that cuDNN gives them.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

using at::Tensor;
using c10::Device, c10::DeviceIndex, c10::MemoryFormat, c10::Stream;
using c10::IntArrayRef, c10::SymIntArrayRef;

const Device kDevice{c10::DeviceType::CUDA, 0};

// ---------------------------------------------------------------------------------------------------------------------
// The device: one, with one stream, which is always done
// ---------------------------------------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return kDevice.type(); }
    Device exchangeDevice(Device) const override { return kDevice; }
    Device getDevice() const override { return kDevice; }
    void setDevice(Device) const override {}
    void uncheckedSetDevice(Device) const noexcept override {}
    Stream getStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
    Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
    Stream exchangeStream(Stream stream) const override { return stream; }
    DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const DeviceIndex) const noexcept override {}
    bool queryStream(const Stream&) const override { return true; }
    void synchronizeStream(const Stream&) const override {}
    void synchronizeEvent(void*) const override {}
    void synchronizeDevice(const DeviceIndex) const override {}
};
c10::impl::DeviceGuardImplRegistrar registrar(kDevice.type(), new Guard);

struct Hooks final : at::CUDAHooksInterface {
    explicit Hooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasCUDA() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return 1; }
    int getNumGPUs() const override { return 1; }
    DeviceIndex current_device() const override { return 0; }
    DeviceIndex getCurrentDevice() const override { return 0; }
    DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
    DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
    void setCurrentDevice(DeviceIndex) const override {}
    void deviceSynchronize(DeviceIndex) const override {}
};
using at::CUDAHooksArgs, at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks);

struct Memory final : c10::Allocator {
    static void release(void* memory) { std::free(memory); }
    c10::DataPtr allocate(std::size_t bytes) override {
        void* memory = nullptr;
        constexpr std::size_t kAligned = 512;  // as CUDA's is
        if (bytes && posix_memalign(&memory, kAligned, bytes)) throw std::bad_alloc();
        return {memory, memory, &release, kDevice};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
const bool known = (c10::SetAllocator(kDevice.type(), &memory), true);

// ---------------------------------------------------------------------------------------------------------------------
// Waiting: an error after torch.cuda.set_sync_debug_mode("error")
// ---------------------------------------------------------------------------------------------------------------------

bool is_forbidden = false;
thread_local int depth = 0;  // of operations that run on the processor, whose copies a GPU would not make

struct OnProcessor {
    OnProcessor() { ++depth; }
    ~OnProcessor() { --depth; }
};

void forbid_waiting(bool forbid) { is_forbidden = forbid; }

void check_waiting(bool waits, const std::string& name) {
    TORCH_CHECK(!(waits && is_forbidden && depth == 0), "called a synchronizing CUDA operation: ", name);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------------------

Tensor filled(Tensor fresh) {
    const auto& context = at::globalContext();
    if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory())
        at::native::fill_empty_deterministic_(fresh);
    return fresh;
}

Tensor empty(IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>, std::optional<Device>,
             std::optional<bool>, std::optional<MemoryFormat> format) {
    return filled(at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                            c10::dtype_or_default(dtype), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<Device>, std::optional<bool>) {
    return filled(at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                    c10::dtype_or_default(dtype)));
}

// The same memory as a tensor of the processor.
Tensor host(const Tensor& x) {
    if (!x.is_cuda()) return x;
    return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(c10::kCPU));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
    if (self.numel()) {
        check_waiting(!non_blocking && self.is_cuda() != source.is_cuda(), "copy_");
        at::NoGradGuard none;
        host(self).copy_(host(source));
    }
    return self;
}

Tensor copy_from(const Tensor& self, const Tensor& target, bool non_blocking) {
    Tensor to = target;
    return copy_(to, self, non_blocking);
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<MemoryFormat> format) {
    auto* const impl = self.unsafeGetTensorImpl();
    impl->generic_set_sizes_contiguous(size);
    auto* const storage = impl->unsafe_storage().unsafeGetStorageImpl();
    const std::size_t bytes = (impl->numel() + impl->storage_offset()) * impl->itemsize();
    if (storage->nbytes() < bytes) {
        auto larger = memory.allocate(bytes);
        if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
        storage->set_data_ptr_noswap(std::move(larger));
        storage->set_nbytes(bytes);
    }
    if (format && *format != MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
    return self;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& target) {
    if (self.sizes() != target.sizes()) resize_(target, self.sizes(), std::nullopt);
    return copy_from(self, target, false);
}

Tensor& set_storage_at(Tensor& self, c10::Storage source, std::int64_t offset, IntArrayRef size, IntArrayRef stride) {
    auto* const impl = self.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(std::move(source));
    impl->set_storage_offset(offset);
    if (stride.data()) impl->set_sizes_and_strides(size, stride);
    else impl->set_sizes_contiguous(size);
    return self;
}

Tensor& set_storage(Tensor& self, c10::Storage source) {
    const auto length = static_cast<std::int64_t>(source.nbytes() / self.itemsize());
    return set_storage_at(self, std::move(source), 0, {length}, {1});
}

// ---------------------------------------------------------------------------------------------------------------------
// Operations
// ---------------------------------------------------------------------------------------------------------------------

// What hands a value to the host, or has a result whose size depends on values, as a selection by a mask does.
const std::set<std::string> kWaiting{"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
                                     "aten::_unique2"};

void run_on_processor(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
    bool here = false, there = false, masked = false;
    const auto look = [&](const Tensor& x) {
        if (!x.defined()) return;
        here |= x.is_cuda();
        there |= x.device().is_cpu() && x.dim() > 0;  // numbers may come from the processor
    };
    const auto& schema = operation.schema();
    for (auto value = stack->end() - schema.arguments().size(); value != stack->end(); ++value) {
        if (value->isTensor()) look(value->toTensor());
        else if (value->isList())
            for (const c10::IValue& element : value->toListRef())
                if (element.isTensor()) {
                    look(element.toTensor());
                    masked |= element.toTensor().dtype() == c10::kBool;  // nothing where there is no tensor
                }
    }
    const bool indices = schema.name().find("index") != std::string::npos;  // which may, too
    TORCH_CHECK(!(here && there) || indices,
                "Expected all tensors to be on the same device, found cuda:0 and cpu: ", schema.name());
    check_waiting(kWaiting.count(schema.name()) || (indices && masked), schema.name());
    const OnProcessor inside;
    at::native::cpu_fallback(operation, stack);
}

// As cuDNN does: channels last if images or filters are, but contiguous in double.
Tensor as_cudnn(const Tensor& result, const Tensor& images, const Tensor& filters) {
    if (!result.defined()) return result;
    const auto last = MemoryFormat::ChannelsLast;
    const bool is_last = result.dim() == 4 && result.scalar_type() != c10::kDouble
        && (images.suggest_memory_format() == last || filters.suggest_memory_format() == last);
    Tensor out = empty(result.sizes(), result.scalar_type(), {}, {}, {}, is_last ? last : MemoryFormat::Contiguous);
    const OnProcessor inside;
    return copy_(out, result, false);
}

void check_devices(std::initializer_list<Tensor> tensors) {
    for (const Tensor& x : tensors)
        TORCH_CHECK(x.is_cuda(), "Expected all tensors to be on the same device, found cuda:0 and cpu: convolution");
}

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef more,
                   c10::SymInt groups) {
    check_devices({x, w});
    std::optional<Tensor> b;
    if (bias && bias->defined()) b = host(*bias);
    return as_cudnn(at::convolution_symint(host(x).contiguous(), host(w).contiguous(), b, stride, padding, dilation,
                                           transposed, more, std::move(groups)),
                    x, w);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& g, const Tensor& x, const Tensor& w,
                                                        at::OptionalSymIntArrayRef bias, SymIntArrayRef stride,
                                                        SymIntArrayRef padding, SymIntArrayRef dilation,
                                                        bool transposed, SymIntArrayRef more, c10::SymInt groups,
                                                        std::array<bool, 3> mask) {
    check_devices({g, x, w});
    auto [by_x, by_w, by_bias] =
        at::convolution_backward_symint(host(g).contiguous(), host(x).contiguous(), host(w).contiguous(), bias, stride,
                                        padding, dilation, transposed, more, std::move(groups), mask);
    return {as_cudnn(by_x, x, w), as_cudnn(by_w, x, w), as_cudnn(by_bias, x, w)};
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_processor>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("copy_", &copy_);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("resize_", &resize_);
    m.impl("set_.source_Storage_storage_offset", &set_storage_at);
    m.impl("set_.source_Storage", &set_storage);
    m.impl("as_strided", &at::native::as_strided_tensorimpl);
    m.impl("view", &at::native::view);
    m.impl("_reshape_alias", &at::native::_reshape_alias);
    m.impl("unfold", &at::native::unfold);
    m.impl("convolution", &convolution);
    m.impl("convolution_backward", &convolution_backward);
}
TORCH_LIBRARY(pretend_gpu, m) {
    m.def("host(Tensor x) -> Tensor", &host);
    m.def("forbid_waiting(bool forbid) -> ()", &forbid_waiting);
}

}  // namespace
