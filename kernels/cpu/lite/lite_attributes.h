// Reads the attributes of a Custom node from the FlatBuffers table that MindSpore Lite passes to a kernel:
//   Primitive { value_type: ubyte; value: Custom }   Custom { type: string; attr: [Attribute] }
//   Attribute { name: string; data: [ubyte] }
// The exporter writes each attribute as text.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <system_error>

namespace edgellama {

class FlatTable {
 public:
  explicit FlatTable(const void* table) : at_(static_cast<const uint8_t*>(table)) {}

  // The address of field `id`, or nullptr if it is absent.
  const uint8_t* field(int id) const {
    const uint8_t* vtable = at_ - read<int32_t>(at_);
    const int slot = 4 + 2 * id;
    if (slot + 2 > read<uint16_t>(vtable)) return nullptr;
    const uint16_t offset = read<uint16_t>(vtable + slot);
    return offset ? at_ + offset : nullptr;
  }
  template <typename T>
  static T read(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  static const uint8_t* follow(const uint8_t* at) { return at + read<uint32_t>(at); }
  // A string or a vector of bytes. The table stores its length, then the bytes.
  static std::string text(const uint8_t* at) {
    return std::string(reinterpret_cast<const char*>(at + 4), read<uint32_t>(at));
  }

 private:
  const uint8_t* at_;
};

inline uint8_t primitive_type(const void* primitive) {
  const uint8_t* type = primitive ? FlatTable(primitive).field(0) : nullptr;
  return type ? *type : 0;
}

inline std::map<std::string, std::string> custom_attributes(const void* primitive) {
  std::map<std::string, std::string> found;
  const uint8_t* value = primitive ? FlatTable(primitive).field(1) : nullptr;
  const uint8_t* list = value ? FlatTable(FlatTable::follow(value)).field(1) : nullptr;
  if (!list) return found;
  list = FlatTable::follow(list);
  const uint32_t count = FlatTable::read<uint32_t>(list);
  for (uint32_t i = 0; i < count; ++i) {
    const FlatTable attribute(FlatTable::follow(list + 4 + 4 * i));
    const uint8_t *name = attribute.field(0), *data = attribute.field(1);
    if (name && data) found[FlatTable::text(FlatTable::follow(name))] = FlatTable::text(FlatTable::follow(data));
  }
  return found;
}

// Reads a whole number that takes all of the text. Returns false if it is none, or does not fit.
inline bool read_integer(const std::string& text, int& number) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && stop == end;
}

}  // namespace edgellama
